"""Deployment: equal outputs, in every implementation, for every network."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, tool
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops import MultiScaleRoIAlign

import norton_det as nd
from norton_det.channels.narrow import NORMS
from norton_det.decompositions import CPConv2d
from norton_det.deployment.deploy import deploy
from norton_det.deployment.fold_batch_norm import fold_norms
from norton_det.deployment.implementations import CP, expand, implementations_of
from norton_det.deployment.linear import LINEAR, ConvolvedLinear
from norton_det.errors import DataError, UsageError
from norton_det.structure.settings import spec_of_setting


def with_statistics(net: nn.Module) -> nn.Module:
    """Give batch norms statistics as if they had been trained."""
    for module in net.modules():
        if isinstance(module, NORMS):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    return net.eval()


@pytest.mark.parametrize("implementation", list(CP))
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("inputs", [1, 5])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (5, 3), "stride": (1, 2), "padding": (2, 0), "dilation": (1, 2), "bias": False},
        {"kernel_size": (2, 3), "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_every_form_is_equal(geometry: dict, inputs: int, rank: int, implementation: str) -> None:
    block = CPConv2d.from_conv(nn.Conv2d(inputs, 7, **geometry, dtype=torch.float64), rank).eval()
    x = torch.randn(2, inputs, 13, 11, dtype=torch.float64)
    torch.testing.assert_close(expand(block, implementation)(x), block(x), rtol=1e-10, atol=1e-10)


def test_an_unknown_form() -> None:
    with pytest.raises(
        UsageError, match="unknown implementation 'fast'; expected one of: dense, depthwise, factored, merged"
    ):
        expand(CPConv2d(3, 3, 3, 1), "fast")


@pytest.mark.parametrize("implementation", list(CP))
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("vgg16_bn_cifar", 32),
        ("resnet56_cifar", 32),
        ("resnet110_cifar", 32),
        ("densenet40_cifar", 32),
        ("resnet50", 64),
    ],
)
def test_networks_keep_their_function(
    arch: str, size: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = with_statistics(nd.build(spec_of_setting(arch, 2, "[0.25]*57")))
    for name in CP:
        if name != implementation:  # so that the fastest of the implementations is this one
            monkeypatch.delitem(CP._items, name)
    images = torch.randn(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fast = deploy(net, images, repeats=1)
    with torch.no_grad():
        expected, got = net(images), fast(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    decomposed = {name for name, module in net.named_modules() if isinstance(module, CPConv2d)}
    implementations = {block.name: block.implementation for block in fast.deployment.blocks}
    assert {implementations[name] for name in decomposed} == {implementation}
    assert all(isinstance(net.get_submodule(name), nn.Linear) for name in implementations.keys() - decomposed)
    assert not any(isinstance(module, CPConv2d) for module in fast.modules())
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    norms = sum(isinstance(module, NORMS) for module in net.modules())
    if arch == "densenet40_cifar":  # its norms come before the convolutions
        assert fast.deployment.folded == {}
    else:
        assert len(fast.deployment.folded) == norms


@pytest.mark.parametrize("arch", ["fasterrcnn", "maskrcnn", "keypointrcnn"])
def test_detectors(arch: str) -> None:
    net = get_model(f"{arch}_cpresnet50_fpn", weights=None, num_classes=3, **{**TINY, "box_score_thresh": 0.0})
    net, _ = nd.decompose(net, f"{arch}_cpresnet50_fpn", 1)
    with_statistics(net)
    images = [torch.rand(3, 64, 64)]
    fast = deploy(net, images, repeats=1)
    with torch.no_grad():
        expected, got = (list(model.backbone(torch.stack(images)).values()) for model in (net, fast))
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()
        assert fast(images)[0].keys() == net(images)[0].keys()
    assert len(fast.deployment.folded) == 53
    kinds = Counter(type(net.get_submodule(block.name)) for block in fast.deployment.blocks)
    pools = 1 if arch == "fasterrcnn" else 2
    assert kinds == {CPConv2d: 16, nn.Linear: 4, MultiScaleRoIAlign: pools}
    for block in fast.deployment.blocks:
        assert f"{block.milliseconds[block.implementation]:.2f}" in str(fast.deployment)


@pytest.mark.parametrize("levels", [["0"], ["0", "1", "2"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gathered_roi_align_is_torchvisions(dtype: torch.dtype, levels: list[str]) -> None:
    torch.manual_seed(0)
    maps = {str(i): torch.randn(2, 5, 64 >> i, 48 >> i, dtype=dtype) for i in range(4)}
    corners = torch.tensor([180.0, 250.0]) * torch.rand(40, 2)
    boxes = torch.cat([corners, corners + torch.logspace(-1, 2.5, 40)[:, None]], 1)  # also tiny, and beyond the image
    autocast = dtype == torch.bfloat16
    boxes = boxes if autocast else boxes.to(dtype)
    images = [boxes[:25], boxes[25:]]
    pool = MultiScaleRoIAlign(levels, (7, 5), sampling_ratio=2)
    gathered = expand(pool, "gathered")
    sizes = [(256, 192)] * 2
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, expected = gathered(maps, images, sizes), pool(maps, images, sizes)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=4 * eps, atol=64 * torch.finfo(boxes.dtype).eps)
    assert gathered(maps, [box[:0] for box in images], sizes).shape == (0, 5, 7, 5)


def test_what_has_no_other_form() -> None:
    class Own(nn.Linear):
        """It might do something else."""

    assert not list(
        implementations_of(MultiScaleRoIAlign(["0"], 7, sampling_ratio=0))
    )  # as many points as each box needs
    assert not list(implementations_of(Own(3, 4)))
    assert not list(implementations_of(nn.Conv2d(3, 4, 3)))


class Named(nn.Module):
    """A linear layer that is called by name, and watched."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(6, 5), 0
        self.layer.register_forward_hook(lambda *_: setattr(self, "seen", self.seen + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_arguments_by_name_and_hooks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    net, x = Named(), torch.randn(4, 6)
    fast = deploy(net, x, repeats=1)
    assert type(fast.layer) is ConvolvedLinear
    net.seen = 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net.layer(x))
    assert net.seen == 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(4,), (2, 3), (0,), ()])
def test_convolved_linear(rows: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(6, 5, bias=bias, dtype=torch.float64)
    x = torch.randn(*rows, 6, dtype=torch.float64)
    torch.testing.assert_close(expand(layer, "convolution")(x), layer(x))


class Shared(nn.Module):
    """A norm that is not alone in looking at the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Twice(nn.Module):
    """A convolution that runs twice, with a norm after the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))


@pytest.mark.parametrize("kind", [Shared, Twice])
def test_what_cannot_be_folded_is_left(kind: type[nn.Module]) -> None:
    net: Any = with_statistics(kind())
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = net(x)
        assert fold_norms(net, (x,)) == {}
        torch.testing.assert_close(net(x), expected)


def test_dense_networks_are_deployed_the_same_way() -> None:
    net = with_statistics(nd.build(nd.Spec("resnet56_cifar", 10)))
    fast = deploy(net, (torch.randn(1, 3, 32, 32),), repeats=1)
    assert len(fast.deployment.folded) == 55
    assert [block.name for block in fast.deployment.blocks] == ["linear"]
    assert set(fast.deployment.milliseconds) == {"given", "contiguous", "channels_last"}
    with pytest.raises(UsageError, match="repeats is 0"):
        deploy(net, torch.randn(1, 3, 32, 32), repeats=0)


@pytest.fixture
def deployed(tmp_path: Path) -> tuple[nn.Module, nd.Spec, Path]:
    """A deployed network of two implementations, and its file."""
    spec = spec_of_setting("resnet56_cifar", 2, "[0.5]*57")
    fast = deploy(with_statistics(nd.build(spec)), torch.randn(1, 3, 32, 32), repeats=1)
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    return fast, spec, tmp_path / "fast.safetensors"


def test_a_deployed_network_is_saved_and_loaded(deployed: tuple[nn.Module, nd.Spec, Path]) -> None:
    fast, spec, path = deployed
    again, read = nd.load(path)
    assert read == spec
    assert again.deployment == fast.deployment
    assert [type(module) for module in again.modules()] == [type(module) for module in fast.modules()]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), fast(x))
        nd.save(again, read, path)  # what was loaded can be saved again
        assert torch.equal(nd.load(path)[0](x), fast(x))
        measured, _ = nd.load(path, redeploy=torch.randn(1, 3, 32, 32))
        torch.testing.assert_close(measured(x), fast(x), rtol=1e-4, atol=1e-4)
    assert measured.deployment.folded == fast.deployment.folded
    assert measured.deployment.milliseconds != fast.deployment.milliseconds
    assert not any(isinstance(module, CPConv2d) for module in measured.modules())


def test_any_file_is_deployed_when_loaded(tmp_path: Path) -> None:
    spec = spec_of_setting("resnet56_cifar", 1, "[0.8]*57")
    nd.save(nd.build(spec), spec, tmp_path / "net.safetensors")
    fast, _ = nd.load(tmp_path / "net.safetensors", redeploy=torch.randn(1, 3, 32, 32))
    assert len(fast.deployment.folded) == 55


def test_a_deployed_network_is_neither_trained_nor_compressed(
    deployed: tuple[nn.Module, nd.Spec, Path], classes: Path, tmp_path: Path, refused: Refused
) -> None:
    fast, spec, path = deployed
    with pytest.raises(UsageError, match="model is deployed, for inference only"):
        nd.prune(fast, spec, "[0.5]*57")
    train = ["--data-path", str(classes), "--device", "cpu", "--output-dir", str(tmp_path), "--weights", str(path)]
    output = str(tmp_path / "x.safetensors")
    compress = ["--arch", "resnet56_cifar", "--rank", "1", "--output", output, "--weights", str(path)]
    for name, words in (("train_cls", train), ("compress", compress)):
        refused(partial(tool(name).main, words), 3, f"{path}: is deployed, for inference only")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "deployment cannot be read: JSONDecodeError"),
        ('{"blocks": []}', "deployment cannot be read: TypeError"),
        (
            '{"blocks": [], "memory_format": "x", "folded": {}, "milliseconds": {}}',
            "memory_format 'x'; expected",
        ),
        (
            '{"blocks": [], "memory_format": "contiguous", "folded": {"x": "y"}, "milliseconds": {}}',
            "norm 'x' cannot be folded into 'y'",
        ),
    ],
)
def test_a_damaged_deployment(text: str, message: str, tmp_path: Path) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    metadata = {"norton_det.spec": spec.to_json(), "norton_det.deployment": text}
    save_file(nd.build(spec).state_dict(), tmp_path / "net.safetensors", metadata)
    with pytest.raises(DataError, match=re.escape(message)):
        nd.load(tmp_path / "net.safetensors")
