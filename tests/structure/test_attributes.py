"""What no tensor shows comes back from a file, or is refused by name."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_network import Small, small_architecture
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.resnet import Bottleneck
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det as nd
from norton_det.errors import DataError, UsageError
from norton_det.structure.attributes import attributes_of, differences
from norton_det.structure.describe import describe

COMPRESSED = {"rank": 1, "rates": "[0.]+[0.1]*2+[0.4]*5+[0.75]*12", "criterion": "norm"}
DETECTOR = "fasterrcnn_cpresnet50_fpn"


def stride_in_1x1() -> nn.Module:
    net = resnet50()
    for stage in ("layer2", "layer3", "layer4"):
        block = getattr(net, stage)[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return net


def reflected() -> nn.Module:
    net = resnet50()
    net.layer1[0].conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False, padding_mode="reflect")
    return net


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "torchvision's": resnet50,
    "dilated": partial(resnet50, replace_stride_with_dilation=[False, True, True]),
    "eps": partial(resnet50, norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)),
    "frozen": partial(resnet50, norm_layer=partial(FrozenBatchNorm2d, eps=0.0)),
    "stride in the 1x1": stride_in_1x1,
    "padded by reflection": reflected,
}


@pytest.mark.parametrize("variant", ORDINARY)
def test_ordinary_variants_come_back(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, spec = nd.compress(ORDINARY[variant](), arch="resnet50", **COMPRESSED)
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, again = nd.load(tmp_path / "net.safetensors")
    assert again == spec
    assert bool(spec.attributes) == (variant not in ("torchvision's",))
    assert not list(differences(loaded, net))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net.eval()(x))
        assert loaded.layer4(loaded.layer3(torch.rand(1, loaded.layer3[0].conv1.in_channels, 8, 8))).shape[-1] == (
            8 if variant == "dilated" else 2
        )


def cifar_stem() -> nn.Module:
    net = resnet50()
    net.conv1.stride, net.maxpool = (1, 1), nn.Identity()
    return net


def with_silu() -> nn.Module:
    net = resnet50()
    net.layer1[0].relu = nn.SiLU()
    return net


class Doubled(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def own_forward() -> nn.Module:
    net = resnet50()
    net.forward = lambda x: net._forward_impl(x) * 2
    return net


def more_modules() -> nn.Module:
    net = resnet50()
    net.dropout = nn.Dropout()
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "stem of CIFAR": (cifar_stem, "maxpool is Identity; expected MaxPool2d"),
    "another activation": (with_silu, "layer1.0.relu is SiLU; expected ReLU"),
    "subclass": (lambda: Doubled(Bottleneck, [3, 4, 6, 3]), "the network is Doubled; expected ResNet"),
    "own forward": (own_forward, "forward is function; expected none"),
    "more modules": (more_modules, "dropout is Dropout; expected none"),
    "blurred": (lambda: timm.create_model("resnetblur50"), "act1 is ReLU; expected none"),
    "subclass of the norm": (
        lambda: resnet50(norm_layer=type("Norm", (nn.BatchNorm2d,), {})),
        "bn1 is Norm; expected BatchNorm2d",
    ),
}


@pytest.mark.parametrize("variant", REFUSED)
def test_other_networks_are_refused_by_name(variant: str) -> None:
    make, message = REFUSED[variant]
    with pytest.raises(UsageError, match=f"model differs from resnet50: {message}"):
        nd.compress(make(), arch="resnet50", **COMPRESSED)


@pytest.mark.slow
def test_each_variant_comes_back_or_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: dict[str, str] = {}
    for variant, make in {**ORDINARY, **{name: make for name, (make, _) in REFUSED.items()}}.items():
        for decomposition in ("cp", "tucker2"):
            torch.manual_seed(0)
            try:
                net, spec = nd.compress(make(), arch="resnet50", **COMPRESSED, decomposition=decomposition)
            except UsageError:
                outcomes[f"{variant}, {decomposition}"] = "refused"
                continue
            nd.save(net, spec, tmp_path / "net.safetensors")
            loaded, x = nd.load(tmp_path / "net.safetensors")[0], torch.rand(1, 3, 64, 64)
            with torch.no_grad():
                assert torch.equal(loaded(x), net.eval()(x)), variant
            outcomes[f"{variant}, {decomposition}"] = "comes back equal"
    with capsys.disabled():
        lines = [f"{variant}: {outcome}" for variant, outcome in outcomes.items()]
        sys.stdout.write("\n".join(["", f"compressed, saved and loaded: {Counter(outcomes.values())}", *lines, ""]))
    assert {variant for variant, outcome in outcomes.items() if outcome == "refused"} == {
        f"{variant}, {decomposition}" for variant in REFUSED for decomposition in ("cp", "tucker2")
    }


def test_hooks_that_change_outputs_are_refused(tmp_path: Path) -> None:
    net = nd.resnet56_cifar(weights=None)
    net.layer1[0].register_forward_hook(lambda module, args, output: output * 2)
    net.compile()  # it changes no output
    net.loss_fn = nn.functional.cross_entropy  # nor does this
    with pytest.raises(UsageError, match=r"something else .* has hooks \(at layer1\.0\)"):
        nd.save(net, describe(net, "resnet56_cifar"), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_hooks_without_which_the_network_does_not_run_are_refused(tmp_path: Path, small: nd.Architecture) -> None:
    net = Small(5)
    net[8].output_size = 2  # 32 features for a layer that reads 8 ...
    net[10].register_forward_pre_hook(lambda module, args: (args[0][:, :8],))  # ... of which it gets 8
    with pytest.raises(UsageError, match=r"runs where the small of its spec does not, for it has hooks \(at 10\)"):
        nd.save(net, describe(net, small.name), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def detector(**options: Any) -> Any:
    torch.manual_seed(0)
    return nd.fasterrcnn_cpresnet50_fpn(weights=None, num_classes=3, **{**TINY, "box_score_thresh": 0.0, **options})


def test_what_detectors_are_given_comes_back(tmp_path: Path) -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=3)
    options = {"bbox_reg_weights": (1.0, 1.0, 2.0, 2.0), "fixed_size": (96, 64), "box_roi_pool": pool}
    net = detector(**options)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    nd.save(net, describe(net, DETECTOR), tmp_path / "net.safetensors")
    loaded, spec = nd.load(tmp_path / "net.safetensors")
    assert not list(differences(loaded, net))
    assert tuple(spec.options["bbox_reg_weights"]) == (1.0, 1.0, 2.0, 2.0)
    assert tuple(spec.options["fixed_size"]) == (96, 64)
    assert spec.attributes["roi_heads.box_roi_pool.sampling_ratio"] == 3
    image = torch.rand(3, 70, 80)
    with torch.no_grad():
        ours, theirs = net.eval()([image])[0], loaded([image])[0]
    assert len(ours["boxes"])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    net.roi_heads.score_thresh = 0.7  # changed after the spec was made
    nd.save(net, spec, tmp_path / "net.safetensors")
    assert nd.load(tmp_path / "net.safetensors")[0].roi_heads.score_thresh == 0.7
    other = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=5, sampling_ratio=2)
    with pytest.raises(UsageError, match=r"roi_heads\.box_head\.fc6\.\w+ (is|has shape)"):
        describe(detector(box_roi_pool=other), DETECTOR)


def test_the_frozen_norms_of_torchvisions_detectors_keep_their_eps(tmp_path: Path) -> None:
    net = detector(norm_layer="FrozenBatchNorm2d")
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    nd.save(net, describe(net, DETECTOR), tmp_path / "net.safetensors")
    assert nd.load(tmp_path / "net.safetensors")[0].backbone.body.bn1.eps == 0.0


def test_what_was_changed_after_the_spec_was_made_is_written_and_arguments_win(tmp_path: Path) -> None:
    net = detector()
    spec = describe(net, DETECTOR)
    net.roi_heads.score_thresh, net.transform.min_size, net.transform.size_divisible = 0.4, (80,), 64
    net.rpn.proposal_matcher = Matcher(0.9, 0.2, allow_low_quality_matches=True)
    net.roi_heads.fg_bg_sampler.batch_size_per_image = 7
    net.rpn.anchor_generator = AnchorGenerator(((16,), (32,), (64,), (96,), (160,)), ((0.5, 1.0, 2.0),) * 5)
    net.backbone.body.bn1.momentum = 0.01
    net.rpn.proposal_matcher.allow_low_quality_matches = False  # no option of the builder
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, again = nd.load(tmp_path / "net.safetensors")
    assert not list(differences(loaded, net))
    assert loaded.rpn.proposal_matcher.high_threshold == 0.9
    assert loaded.roi_heads.fg_bg_sampler.batch_size_per_image == 7
    assert set(again.attributes) == {"backbone.body.bn1.momentum", "rpn.proposal_matcher.allow_low_quality_matches"}
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=4)
    options = {"min_size": 64, "box_score_thresh": 0.01, "box_roi_pool": pool, "size_divisible": 32}
    built = nd.fasterrcnn_cpresnet50_fpn(weights=tmp_path / "net.safetensors", **options)
    assert (built.transform.min_size, built.roi_heads.score_thresh) == ((64,), 0.01)
    assert built.transform.size_divisible == 32
    assert built.roi_heads.box_roi_pool.sampling_ratio == 4
    assert type(built.backbone.body.bn1) is FrozenBatchNorm2d, "which has no momentum"
    assert built.rpn.proposal_matcher.allow_low_quality_matches is False


def test_a_backbone_keeps_its_geometry_in_a_detector(tmp_path: Path) -> None:
    make = partial(resnet50, replace_stride_with_dilation=[False, False, True])
    net, spec = nd.compress(make(norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.2)), arch="resnet50", rank=1)
    nd.save(net, spec, tmp_path / "net.safetensors")
    for norm_layer in ("FrozenBatchNorm2d", "BatchNorm2d"):
        built = detector(weights_backbone=tmp_path / "net.safetensors", norm_layer=norm_layer)
        assert built.backbone.body.layer4[2].conv2.geometry()["dilation"] == (2, 2)
        assert built.backbone.body.bn1.eps == 1e-3
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            features = built.eval().backbone.body(x)["3"]
            expected = nn.Sequential(*list(net.eval().children())[:-2])(x)
        torch.testing.assert_close(features, expected)


def test_attributes_of_a_file_that_cannot_be_set(tmp_path: Path) -> None:
    for path, message in (
        ("layer1.0.conv1.nothing", "attribute 'layer1.0.conv1.nothing': Conv2d has no 'nothing'"),
        ("layer9.eps", "attribute 'layer9.eps': CifarResNet has no 'layer9'"),
        ("conv1.weight", "attribute 'conv1.weight': Conv2d has no 'weight'"),
        ("training", "attribute 'training' is not plain"),
    ):
        with pytest.raises(UsageError, match=message):
            nd.build(nd.Spec("resnet56_cifar", 10, attributes={path: 1}))
    with pytest.raises(DataError, match=r"attributes\['bn1.eps'\]"):
        nd.Spec("resnet56_cifar", 10, attributes={"bn1.eps": {1: 2}})
    spec = nd.Spec("resnet56_cifar", 10, attributes={"conv1.padding": [1, 1], "bn1.eps": 0.5})
    assert nd.Spec.from_json(spec.to_json()) == spec
    assert nd.build(spec).conv1.padding == (1, 1)


@pytest.fixture(scope="module")
def small() -> Iterator[nd.Architecture]:
    with small_architecture() as architecture:
        yield architecture


PLAIN = [
    (f"{name}.{key}", value)
    for name, module in Small(5).named_children()
    for key, value in attributes_of(module).items()
]
VALUES: dict[type, st.SearchStrategy[Any]] = {
    float: st.floats(1e-6, 0.9),
    int: st.integers(1, 3),
    bool: st.booleans(),
    tuple: st.tuples(*[st.integers(1, 3)] * 2),
    str: st.sampled_from(["reflect", "replicate", "circular"]),
    type(None): st.integers(1, 3),
}


def changes() -> st.SearchStrategy[tuple[str, Any]]:
    """An attribute of a small network, with a value that it does not have."""
    return st.sampled_from(PLAIN).flatmap(
        lambda item: st.tuples(st.just(item[0]), VALUES[type(item[1])].filter(lambda value: value != item[1]))
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.lists(changes(), min_size=1, max_size=2, unique_by=lambda item: item[0]))
def test_any_change_comes_back_or_is_refused(
    tmp_path: Path, small: nd.Architecture, changed: list[tuple[str, Any]]
) -> None:
    torch.manual_seed(0)
    net = Small(5).eval()
    for path, value in changed:
        owner, _, name = path.rpartition(".")
        conv: Any = net.get_submodule(owner)
        setattr(conv, name, value)
        if name == "padding" and isinstance(conv, nn.Conv2d):
            conv._reversed_padding_repeated_twice = [side for size in reversed(conv.padding) for side in (size, size)]
    message = ""
    try:
        nd.save(net, describe(net, small.name), tmp_path / "net.safetensors")
    except UsageError as error:
        message = str(error)
    if message:
        named = any(f"attribute {path!r}" in message for path, _ in changed)
        layer = re.search(
            r"^\d+\.\w+ is|small: \d+\.\w+ is|does not fit the network: \d+\.\w+ has shape|layer '\d+': ", message
        )
        assert named or layer, message
        return
    loaded, _ = nd.load(tmp_path / "net.safetensors")
    x = torch.rand(2, 3, 16, 16)

    def outcome(network: nn.Module) -> Any:
        try:
            return network(x)
        except Exception as error:
            return str(error)

    with torch.no_grad():
        expected, got = outcome(net), outcome(loaded)
    assert type(got) is type(expected)
    assert torch.equal(got, expected) if isinstance(got, Tensor) else got == expected
