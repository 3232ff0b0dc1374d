"""norton_det.backbone: what is in a file, as a backbone for other networks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.builders.backbone_networks import Backbone
from norton_det.models import ARCHITECTURES
from norton_det.structure.settings import spec_from_configuration

RATES = "[0.]+[0.3]*3+[0.8]*16"
STAGES = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with a compressed ResNet-50 inside, of random weights: a classifier's with dilation, a whole detector's."""
    folder = tmp_path_factory.mktemp("backbones")
    paths = {name: folder / f"{name}.safetensors" for name in ("classifier", "detector")}
    spec = spec_from_configuration("resnet50", 1, RATES, num_classes=5)
    options = {"replace_stride_with_dilation": [False, False, True]}
    spec = replace(spec, options=options, kept={"layer1": tuple(range(1, 180))}, provenance={"source": "a test"})
    net: Any = with_random_norms(nd.build(spec))
    nd.save(net, spec, paths["classifier"])
    options = {"decomposition": "tucker2", "scope": "detector"}
    spec = spec_from_configuration("fasterrcnn_cpresnet50_fpn", 8, [0.3] * 22 + [0.9] * 3, num_classes=3, **options)
    spec = replace(spec, options=TINY, provenance={"prune": {}})
    nd.save(with_random_norms(nd.build(spec)), spec, paths["detector"])
    return paths


def with_random_norms(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def maps_of(net: Callable[[Tensor], dict[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(net(images))


def assert_same_maps(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-4, atol=1e-5)


def assert_describes_itself(net: Backbone, maps: dict[str, Tensor], size: int) -> None:
    """What a backbone says of its maps is what they are."""
    assert net.channels == tuple(each.shape[1] for each in maps.values())
    assert net.strides == tuple(size // each.shape[-1] for each in maps.values())
    assert net.feature_info.channels() == list(net.channels)
    assert net.feature_info.reduction() == list(net.strides)
    assert all(net.get_submodule(name) for name in net.feature_info.module_name())
    shapes = net.output_shape()
    assert [(key, shape.channels, shape.stride) for key, shape in shapes.items()] == list(
        zip(maps, net.channels, net.strides, strict=True)
    )


def test_a_classifiers_file_with_dilation_and_eps(files: dict[str, Path]) -> None:
    classifier, _ = nd.load(files["classifier"])
    images = torch.rand(2, 3, 64, 64)
    expected = maps_of(IntermediateLayerGetter(classifier, STAGES), images)
    for norm in (None, "train"):
        net = nd.backbone(files["classifier"], norm=norm).eval()
        maps = maps_of(net, images)
        assert_same_maps(maps, expected)
        assert_describes_itself(net, maps, 64)
        assert net.strides == (4, 8, 16, 16)
        assert net.bn1.eps == 1e-3
        assert net.layer4[1].conv2.geometry()["dilation"] == (2, 2)


@pytest.mark.parametrize("indices", [(0, 1), (2, 4), pytest.param((3,), marks=pytest.mark.slow)])
def test_some_of_the_maps(files: dict[str, Path], indices: tuple[int, ...]) -> None:
    everything = nd.backbone(files["classifier"], out_indices=(0, 1, 2, 3, 4)).eval()
    some = nd.backbone(files["classifier"], out_indices=indices, trainable_layers=5).eval()
    images = torch.rand(1, 3, 64, 96)
    maps = list(maps_of(everything, images).values())
    found = maps_of(some, images)
    assert_same_maps(found, {str(i): maps[index] for i, index in enumerate(indices)})
    assert some.out_channels == (some.channels if len(indices) > 1 else some.channels[0])
    some.train()(images)[str(len(indices) - 1)].sum().backward()
    trained = {name for name, parameter in some.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in some.named_parameters() if parameter.grad is not None}


@pytest.mark.slow
def test_the_backbone_of_a_detector_with_its_own_pyramid(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector, spec = nd.load(files["detector"])
    images = torch.rand(1, 3, 64, 64)
    expected = maps_of(detector.backbone, images)
    net = nd.backbone(files["detector"], fpn=True).eval()
    maps = maps_of(net, images)
    assert_same_maps(maps, expected)
    assert_describes_itself(net, maps, 64)
    assert net.out_channels == detector.backbone.out_channels == 179
    assert net.spec is not None
    assert net.spec.ranks["fpn.layer_blocks.0.0"] == spec.ranks["backbone.fpn.layer_blocks.0.0"]
    top = maps_of(nd.backbone(files["detector"], out_indices=(2, 3, 4), fpn=True).eval(), images)
    assert_same_maps(top, dict(zip(["0", "1", "2", "pool"], list(expected.values())[1:], strict=True)))
    assert_same_maps(maps_of(nd.backbone(files["detector"]).eval(), images), maps_of(detector.backbone.body, images))
    net.save(tmp_path / "fpn.safetensors")
    again = nd.backbone(tmp_path / "fpn.safetensors", fpn=True)
    assert again.spec == net.spec
    assert_same_maps(maps_of(again.eval(), images), expected)
    loaded, _ = nd.load(tmp_path / "fpn.safetensors")
    assert_same_maps(maps_of(loaded, images), expected)
    # In a detector of the same kind its pyramid comes along; in one of another kind it is left out.
    same, _ = make_detector("maskrcnn_cpresnet50_fpn", weights_backbone=tmp_path / "fpn.safetensors")
    assert_same_maps(maps_of(same.backbone.eval(), images), expected)
    other, _ = make_detector("fasterrcnn_cpresnet50_fpn_v2", weights_backbone=files["detector"])
    assert_same_maps(maps_of(other.backbone.body.eval(), images), maps_of(detector.backbone.body, images))
    assert "its feature pyramid is not that of fasterrcnn_cpresnet50_fpn_v2, and is left out" in caplog.text


def test_a_file_of_its_own(files: dict[str, Path], tmp_path: Path) -> None:
    net = nd.backbone(files["classifier"], out_indices=(2, 4), norm="train").eval()
    net.save(tmp_path / "b.safetensors")
    loaded, spec = nd.load(tmp_path / "b.safetensors")
    images = torch.rand(1, 3, 64, 64)
    assert isinstance(loaded, Backbone)
    assert_same_maps(maps_of(loaded, images), maps_of(net, images))
    assert loaded.out_indices == (2, 4)
    source = nd.load(files["classifier"])[1]
    assert spec == net.spec
    assert (spec.kept, spec.provenance) == (source.kept, source.provenance)
    detector = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=tmp_path / "b.safetensors").eval()
    whole = maps_of(nd.backbone(tmp_path / "b.safetensors").eval(), images)
    assert_same_maps(maps_of(detector.backbone.body, images), whole)
    assert nd.count_complexity(spec).params == sum(p.numel() for p in net.parameters())


def test_state_dicts_and_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, detector = resnet50(), fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = maps_of(IntermediateLayerGetter(net.eval(), STAGES), images)
    torch.save({"model": net.state_dict()}, tmp_path / "net.pth")
    assert_same_maps(maps_of(nd.backbone(tmp_path / "net.pth").eval(), images), expected)
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, **kw: net.state_dict())
    for weights in (ResNet50_Weights.IMAGENET1K_V2, "IMAGENET1K_V1"):
        assert_same_maps(maps_of(nd.backbone(weights).eval(), images), expected)
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda self, **kw: detector.state_dict())
    pyramid = maps_of(detector.backbone, images)
    found = maps_of(nd.backbone(tmp_path / "detector.pth", fpn=True, norm="train").eval(), images)
    assert_same_maps(found, pyramid)
    for module in detector.backbone.modules():
        module.eps = 1e-12  # torchvision sets 0 for these weights, which BatchNorm2d of older torch refuses
    pyramid = maps_of(detector.backbone, images)
    found = maps_of(nd.backbone("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", fpn=True).eval(), images)
    assert_same_maps(found, pyramid)


def test_norms_and_what_is_trained(files: dict[str, Path]) -> None:
    def trained(net: nn.Module) -> set[str]:
        return {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}

    def norms(net: nn.Module) -> set[type]:
        return {type(module) for module in net.modules() if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))}

    everything = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    scratch = nd.backbone(None)
    assert (norms(scratch), trained(scratch)) == ({nn.BatchNorm2d}, everything)
    net = nd.backbone(files["classifier"], norm="train", trainable_layers=2)
    assert (norms(net), trained(net)) == ({nn.BatchNorm2d}, {"layer3", "layer4"})
    assert norms(nd.backbone(files["classifier"], norm="frozen")) == {FrozenBatchNorm2d}
    fresh = nd.backbone(files["detector"])  # compressed, not trained since
    assert (norms(fresh), trained(fresh)) == ({nn.BatchNorm2d}, everything)
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()(torch.rand(2, 3, 64, 64))
    changed = {name.split(".")[0] for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {"layer3", "layer4"}  # the statistics of frozen parts stay as well
    assert net.freeze() is net
    assert trained(net) == set()
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert trained(net.freeze(5)) == everything
    assert trained(nd.backbone(None, fpn=True).freeze()) == {"fpn"}


def test_torchvisions_helpers_work_on_it(files: dict[str, Path]) -> None:
    net = nd.backbone(files["classifier"]).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = maps_of(net, images)
    assert_same_maps(maps_of(IntermediateLayerGetter(net, STAGES), images), expected)
    extractor = create_feature_extractor(net, STAGES)
    assert_same_maps(maps_of(extractor, images), expected)
    pyramid = BackboneWithFPN(net, STAGES, list(net.channels), 32)
    assert_same_maps(maps_of(pyramid.body, images), expected)
    assert [each.shape[1] for each in pyramid(images).values()] == [32] * 5
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):  # older torch: the latter
        scripted = torch.jit.script(net)
    assert_same_maps(maps_of(scripted, images), expected)


@pytest.mark.parametrize(
    ("source", "fpn"), [("classifier", False), pytest.param("detector", True, marks=pytest.mark.slow)]
)
def test_a_deployed_backbone_is_equal(source: str, fpn: bool, files: dict[str, Path], tmp_path: Path) -> None:
    net = nd.backbone(files[source], fpn=fpn).eval()
    images = torch.rand(1, 3, 64, 64)
    fast: Any = nd.deploy(net, images, repeats=1)
    assert fast.deployment.folded
    assert_same_maps(maps_of(fast, images), maps_of(net, images))
    assert (fast.channels, fast.strides, fast.out_channels) == (net.channels, net.strides, net.out_channels)
    fast.save(tmp_path / "fast.safetensors")
    assert_same_maps(maps_of(nd.load(tmp_path / "fast.safetensors")[0], images), maps_of(net, images))


@pytest.mark.slow
def test_it_is_compressed_and_calibrated_like_any_network(tmp_path: Path) -> None:
    dense = nd.backbone(None, out_indices=(2, 4))
    options: dict[str, Any] = {"criterion": "norm", "calibration": torch.rand(2, 3, 32, 32)}
    layers = {"layer2.0.conv2": 1, "layer4.0.conv2": 2}
    net, spec = nd.compress(dense, arch=dense.architecture, rank=layers, rates=RATES, **options)
    assert net.channels == (358, 2048)
    errors = spec.provenance["calibrate"]["output_error"]
    assert 0 < errors["fitted"] <= errors["plain"]
    net.save(tmp_path / "b.safetensors")
    assert nd.load(tmp_path / "b.safetensors")[1].kept == spec.kept


def test_the_plans_are_those_of_the_detectors() -> None:
    for name, detector in (("resnet50_fpn_backbone", ""), ("resnet50_fpn_v2_backbone", "_v2")):
        plan = ARCHITECTURES[name].plan.inside("backbone.")
        whole = ARCHITECTURES[f"fasterrcnn_cpresnet50_fpn{detector}"].plan
        names = {layer.name.rstrip(".") for layer in plan.layers}
        assert names == {layer.name for layer in whole.layers if layer.name.startswith("backbone")}
        assert all(whole.widths[group] == width for group, width in plan.widths.items())


def test_wrong_input(files: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    nd.save(nd.build(spec), spec, tmp_path / "cifar.safetensors")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    path = files["classifier"]
    refused(lambda: nd.backbone(tmp_path / "cifar.safetensors"), 2, "is a resnet56_cifar; expected a resnet50")
    refused(lambda: nd.backbone(tmp_path / "none.pth"), 3, "none.pth: no such file")
    refused(lambda: nd.backbone(tmp_path / "other.pth"), 3, "has no tensor 'conv1.weight'")
    refused(lambda: nd.backbone(path, out_indices=(4, 1)), 2, "out_indices is [4, 1]; expected ascending")
    refused(lambda: nd.backbone(path, out_indices=(0, 1), fpn=True), 2, "numbers from 1 to 4")
    refused(lambda: nd.backbone(path, norm="batch"), 2, "unknown norm 'batch'; expected one of: frozen, train")
    refused(lambda: nd.backbone(path, trainable_layers=6), 2, "should be in the range [0,5], got 6")
    refused(lambda: nd.backbone(None).freeze(7), 2, "trainable_layers is 7; expected 0 to 5")
    refused(lambda: nd.build(nd.Spec("resnet50_backbone", 3)), 2, "num_classes of resnet50_backbone is 3; expected 0")
    refused(lambda: nd.build(nd.Spec("resnet50", 0)), 2, "num_classes of resnet50 is 0; expected at least 1")
    changed = nd.backbone(None)
    changed.relu = nn.SiLU()
    refused(lambda: changed.save(tmp_path / "x.safetensors"), 2, "relu is SiLU; expected ReLU")
