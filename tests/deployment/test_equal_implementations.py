"""Layers in each of their implementations compute the same."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from norton_det.decompositions import CPConv2d
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.deployment.implementations.decomposed import CP
from norton_det.deployment.implementations.linear import LINEAR, ConvolvedLinear
from norton_det.errors import UsageError


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
def test_every_implementation_is_equal(geometry: dict, inputs: int, rank: int, implementation: str) -> None:
    block = CPConv2d.from_conv(nn.Conv2d(inputs, 7, **geometry, dtype=torch.float64), rank).eval()
    x = torch.randn(2, inputs, 13, 11, dtype=torch.float64)
    torch.testing.assert_close(expand(block, implementation)(x), block(x), rtol=1e-10, atol=1e-10)


def test_an_unknown_implementation() -> None:
    with pytest.raises(
        UsageError, match="unknown implementation 'fast'; expected one of: dense, depthwise, factored, merged"
    ):
        expand(CPConv2d(3, 3, 3, 1), "fast")


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_boxes_are_pooled_as_torchvision_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=dtype)

    for points in (1, 2, 3, 5):
        maps = {str(i): between(-1, 1, 1, 2, 64 >> i, 48 >> i) for i in range(4)}
        boxes = between(-300, 500, 60, 4)  # turned round, outside of the image, huge
        boxes[::7, 2:] = boxes[::7, :2]  # no area
        boxes[::11, 2:] = boxes[::11, :2] + between(-1e-3, 1e-3, 6, 2)
        for levels in (["0"], ["0", "1", "2", "3"]):
            pool = MultiScaleRoIAlign(levels, (3, 4), sampling_ratio=points)
            got, expected = (layer(maps, [boxes], [(256, 192)]) for layer in (expand(pool, "gathered"), pool))
            torch.testing.assert_close(got, expected, rtol=0, atol=500 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("levels", [["0"], ["0", "1"]])
def test_boxes_that_are_no_numbers_pool_zeros(levels: list[str], wrong: float) -> None:
    maps = {str(i): torch.ones(1, 2, 64 >> i, 48 >> i) for i in range(2)}
    good, bad = torch.tensor([10.0, 10.0, 40.0, 60.0]), torch.full((4,), wrong)
    pool = expand(MultiScaleRoIAlign(levels, 7, sampling_ratio=2), "gathered")
    for _ in range(5):  # what is not written differs from time to time
        pooled = pool(maps, [torch.stack([bad, good, bad])], [(64, 48)])
        assert torch.equal(pooled.flatten(1).mean(1), torch.tensor([0.0, 1.0, 0.0]))


def test_layers_with_one_implementation() -> None:
    class Derived(nn.Linear):
        """It might do something else."""

    assert not list(
        implementations_of(MultiScaleRoIAlign(["0"], 7, sampling_ratio=0))
    )  # as many points as each box needs
    assert not list(implementations_of(Derived(3, 4)))
    assert not list(implementations_of(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(4,), (2, 3), (0,), ()])
def test_convolved_linear(rows: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(6, 5, bias=bias, dtype=torch.float64)
    x = torch.randn(*rows, 6, dtype=torch.float64)
    torch.testing.assert_close(expand(layer, "convolution")(x), layer(x))


class Named(nn.Module):
    """A linear layer that is called by name, and watched."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 5), 0
        self.layer.register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_arguments_by_name_and_hooks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    net, x = Named(), torch.randn(4, 6)
    fast = deploy(net, x, repeats=1)
    assert type(fast.layer) is ConvolvedLinear
    net.calls = 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net.layer(x))
    assert net.calls == 2
