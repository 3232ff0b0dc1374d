"""One value for a network: described, rebuilt, and looked up by name once."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.registry import Registry
from norton_det.search.uniform import search
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.describe import describe
from norton_det.structure.settings import spec_from_configuration

OPTIONS = {
    "min_size": [[800], [640, 800], [64]],
    "max_size": [1333, 640],
    "image_std": [[1.0, 1.0, 1.0]],
    "norm_layer": ["FrozenBatchNorm2d"],
    "anchor_sizes": [[[8], [16], [32], [64], [128]]],
    "rpn_nms_thresh": [0.5],
    "box_score_thresh": [0.0],
    "box_detections_per_img": [20],
    "num_keypoints": [17, 3],
}
DEFAULT_MIN_SIZE = {"keypointrcnn_cpresnet50_fpn": [640, 672, 704, 736, 768, 800]}


def specs(arch: str) -> Iterator[Spec]:
    """Yield specs of an architecture: dense, decomposed by several methods, narrowed, with each option."""
    architecture = ARCHITECTURES[arch]
    classes = 7 if architecture.classifier else 0
    yield Spec(arch, classes)
    layers = [layer.name for layer in architecture.plan.layers if layer.writes and not layer.name.endswith("shortcut")]
    methods = {layers[0]: DecomposedLayer("cp", 2), layers[1]: DecomposedLayer("tucker2", (2, 3))}
    if arch != "densenet40_cifar":
        yield Spec(arch, classes, methods)
    if not arch.startswith(("resnet56", "resnet110")):  # which channels their shortcuts map cannot be seen
        yield Spec(arch, classes, widths=dict.fromkeys(list(architecture.plan.widths)[1:3], 3))
    if architecture.task.name == "features":
        yield Spec(arch, classes, options={"norm_layer": "FrozenBatchNorm2d", "out_indices": [2, 4]})
    if architecture.task.name == "detection":
        defaults: dict[str, object] = dict.fromkeys(OPTIONS)
        defaults |= {"min_size": DEFAULT_MIN_SIZE.get(arch, [800]), "max_size": 1333, "num_keypoints": 17}
        for name, values in (OPTIONS | {"rpn_pre_nms_top_n_test": [300]}).items():
            for value in values if name != "num_keypoints" or arch.startswith("keypoint") else ():
                if value != defaults.get(name):
                    yield Spec(arch, classes, options={name: value})


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=[pytest.mark.slow] * (arch == "maskrcnn_cpresnet50_fpn_v2")) for arch in ARCHITECTURES],
)
def test_what_is_built_is_described_by_its_spec(arch: str) -> None:
    count = 0
    for spec in specs(arch):
        assert describe(nd.build(spec, "meta"), arch) == spec
        count += 1
    assert count >= 2


def test_an_option_that_is_another_detectors_default_is_kept(tmp_path: str) -> None:
    net, spec = make_detector("keypointrcnn_cpresnet50_fpn", min_size=800)
    nd.save(net, spec, f"{tmp_path}/kp.safetensors")
    loaded, _ = nd.load(f"{tmp_path}/kp.safetensors")
    assert list(loaded.transform.min_size) == list(net.transform.min_size) == [800]


@pytest.mark.parametrize("arch", ["resnet50", "resnet56_cifar"])
def test_an_architecture_is_looked_up_at_most_twice(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    look_up = Registry.__getitem__

    def counting(registry: Registry, name: str) -> object:
        if registry is ARCHITECTURES:
            names.append(name)
        return look_up(registry, name)

    model = nd.build(Spec(arch, 5))
    monkeypatch.setattr(Registry, "__getitem__", counting)
    nd.compress(model, arch=arch, rank=1, rates="[0.]+[0.5]*30", criterion="norm")
    assert 1 <= len(names) <= 2
    names.clear()
    nd.compress(None, arch=arch, rank=1, rates="[0.]+[0.5]*30", criterion="norm")
    assert 1 <= len(names) <= 2


def test_several_methods_in_one_network() -> None:
    net = nd.build(Spec("resnet56_cifar", 5))
    first, spec = nd.decompose(net, "resnet56_cifar", {"layer1.0.conv1": 2})
    both, spec = nd.decompose(first, spec, {"layer3.0.conv2": (8, 9)}, method="tucker2")
    assert spec.decompositions == {
        "layer1.0.conv1": DecomposedLayer("cp", 2),
        "layer3.0.conv2": DecomposedLayer("tucker2", (8, 9)),
    }
    layers = spec.provenance["decompose"]["layers"]
    assert {name: layer["method"] for name, layer in layers.items()} == {
        "layer1.0.conv1": "cp",
        "layer3.0.conv2": "tucker2",
    }
    narrow, spec = nd.prune(both, spec, "[0.]+[0.25]*29", criterion="norm")
    rebuilt = nd.build(Spec.from_json(spec.to_json())).eval()
    rebuilt.load_state_dict(narrow.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(rebuilt(images), narrow.eval()(images))


class Small(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(*layers, nn.Linear(8, num_classes))


def test_an_architecture_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: str) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    layers = (nd.Layer("0", (), "hidden"), nd.Layer.norm("1", ("hidden",)), nd.Layer("5", ("hidden",)))
    plan = nd.ChannelPlan({"hidden": 8}, layers)
    rates = (nd.RateEntry("hidden", ("hidden",)),)
    nd.register_architecture(nd.Architecture("small", Small, plan, rates, 10, 32, "5", "cifar10"))
    net, spec = nd.compress(Small(10), arch="small", rank=2, rates=[0.5], calibration=torch.rand(4, 3, 32, 32))
    nd.save(net, spec, f"{tmp_path}/small.safetensors")
    loaded, again = nd.load(f"{tmp_path}/small.safetensors")
    assert again == spec
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), net.eval()(images))
    assert nd.count_complexity(spec).params == sum(p.numel() for p in net.parameters())
    with pytest.raises(ValueError, match="'small' is registered already"):
        nd.register_architecture(nd.Architecture("small", Small, plan, rates, 10, 32, "5", "cifar10"))


def test_an_architecture_of_ones_own_takes_part_in_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    layers = (nd.Layer("0", (), "hidden"), nd.Layer.norm("1", ("hidden",)), nd.Layer("5", ("hidden",)))
    plan, rates = nd.ChannelPlan({"hidden": 8}, layers), (nd.RateEntry("hidden", ("hidden",)),)
    nd.register_architecture(nd.Architecture("small", Small, plan, rates, 10, 32, "5", "cifar10"))
    (best,) = search("small", target_macs=100_000, tolerance=0.5, limit=1)
    spec = spec_from_configuration("small", best.rank, best.rates)
    assert nd.count_complexity(spec).macs == best.macs <= 100_000

    class Pointwise(Small):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self[0] = nn.Conv2d(3, 8, 1)

    nd.register_architecture(nd.Architecture("pointwise", Pointwise, plan, rates, 10, 32, "5", "cifar10"))
    limit = nd.count_complexity(nd.Spec("pointwise", 10)).macs // 2
    assert search("pointwise", target_macs=limit, tolerance=0.5)[0].rank is None
    _, spec = nd.compress(
        Pointwise(10), arch="pointwise", budget=nd.Budget(macs=limit), calibration=torch.rand(4, 3, 32, 32)
    )
    assert nd.count_complexity(spec).macs <= limit
    assert spec.ranks == {}


@pytest.mark.parametrize("rank", [8, (8, 8)])
def test_a_rank_above_the_channels_is_refused(rank: int | tuple[int, int]) -> None:
    spec = Spec("resnet56_cifar", 10, {"conv1": DecomposedLayer("tucker2", rank)})
    with pytest.raises(UsageError, match=r"layer 'conv1': rank .* is above its channels; expected at most \(3, 8\)"):
        nd.build(spec)


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"options \{'foo': 1\} of resnet56_cifar: .*unexpected keyword"):
        nd.build(Spec("resnet56_cifar", 10, options={"foo": 1}))
