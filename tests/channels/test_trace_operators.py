"""Plans derived from small networks, one for each kind of layer or operator, beside those worked out by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d
from written_plans import Net, written

import norton_det as nd
from norton_det.channels.narrow import ChannelMap
from norton_det.deployment.implementations.roi_align import GatheredRoIAlign

MAP = (2, 3, 8, 8)
BOXES = torch.tensor([[0.0, 0.0, 0.0, 5.0, 6.0], [1.0, 2.0, 1.0, 7.0, 7.0], [1.0, 0.0, 0.0, 8.0, 8.0]])


class Case(NamedTuple):
    """A network, the lines of its plan, the groups written separately, and the shape of its input."""

    net: Net
    plan: str
    separate: tuple[str, ...] = ()
    shape: tuple[int, ...] = MAP


def conv(channels: int, filters: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, kernel, padding=kernel // 2, **options)


def after(layer: nn.Module) -> Net:
    """A layer that works in place between two convolutions."""
    return Net(lambda n, x: n.b(F.relu(n.layer(n.a(x)))), a=conv(3, 8), layer=layer, b=conv(8, 4))


def between(run: Callable[[Tensor], Tensor], reads: int = 8) -> Net:
    """An operator without weights between two convolutions."""
    return Net(lambda n, x: n.b(run(n.a(x))), a=conv(3, 8), b=conv(reads, 4))


def two(join: Callable[[Tensor, Tensor], Tensor], reads: int = 8, last: nn.Module | None = None) -> Net:
    """An operator that joins the outputs of two convolutions."""
    return Net(lambda n, x: n.c(join(n.a(x), n.b(x))), a=conv(3, 8), b=conv(3, 8), c=last or conv(reads, 4))


def pyramid(pool: MultiScaleRoIAlign) -> Net:
    """Two maps, pooled for boxes of both sizes, each by its own level."""

    def run(n: Any, x: Tensor) -> Tensor:
        boxes = [torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 60.0, 60.0]]).to(x)] * 2
        maps = {"0": n.a(x), "1": F.max_pool2d(n.b(x), 2)}
        return n.fc(pool(maps, boxes, [(64, 64)] * 2).flatten(1))

    return Net(run, a=conv(3, 8), b=conv(3, 8), fc=nn.Linear(8 * 9, 5))


def rows(a: Tensor, b: Tensor) -> Tensor:
    joined = a.new_zeros(4, *a.shape[1:])
    joined[torch.tensor([1, 0])] = a
    joined[3:] = 0
    joined[torch.tensor([3])] = b[:1]
    return joined


def deconv(n: Any, x: Tensor) -> Tensor:
    return n.c(F.relu(n.b(n.a(x))))


def gate(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    return n.b(y * n.up(F.relu(n.down(y.mean((2, 3), keepdim=True)))).sigmoid())


def heads(n: Any, x: Tensor) -> Tensor:
    return torch.cat([n.out(F.relu(n.head(level))) for level in (n.a(x), F.avg_pool2d(n.b(x), 2), n.b(x))], 3)


def heads_of_one_size(n: Any, x: Tensor) -> Tensor:
    return n.out(F.relu(n.head(n.a(x)))) + n.out(F.relu(n.head(n.b(x))))


IN_PLACE = "a: -> a | layer = a | b: a"
SIMPLE = "a: -> a | b: a"
ADDED = "a: -> a | b: -> a | c: a"
CASES = {
    # Layers.
    "batch norm": Case(after(nn.BatchNorm2d(8)), IN_PLACE),
    "batch norm without parameters": Case(after(nn.BatchNorm2d(8, affine=False)), IN_PLACE),
    "batch norm without anything": Case(after(nn.BatchNorm2d(8, affine=False, track_running_stats=False)), IN_PLACE),
    "frozen batch norm": Case(after(FrozenBatchNorm2d(8)), IN_PLACE),
    "instance norm": Case(after(nn.InstanceNorm2d(8, affine=True)), IN_PLACE),
    "instance norm without parameters": Case(after(nn.InstanceNorm2d(8)), IN_PLACE),
    "group norm of single channels": Case(after(nn.GroupNorm(8, 8)), IN_PLACE),
    "group norm without parameters": Case(after(nn.GroupNorm(8, 8, affine=False)), IN_PLACE),
    "PReLU": Case(after(nn.PReLU(8)), IN_PLACE),
    "PReLU of one parameter": Case(after(nn.PReLU()), SIMPLE),
    "depthwise": Case(after(conv(8, 8, groups=8)), IN_PLACE),
    "transposed": Case(
        Net(deconv, a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, 2), c=conv(6, 4)), "a: -> a | b: a -> b | c: b"
    ),
    "transposed depthwise": Case(
        Net(deconv, a=conv(3, 8), b=nn.ConvTranspose2d(8, 8, 2, 2, groups=8), c=conv(8, 4)),
        "a: -> a | b = a | c: a",
    ),
    "one dimension": Case(
        Net(deconv, a=nn.Conv1d(3, 8, 3), b=nn.BatchNorm1d(8), c=nn.Conv1d(8, 4, 3)),
        "a: -> a | b = a | c: a",
        shape=(2, 3, 9),
    ),
    "three dimensions": Case(
        Net(deconv, a=nn.Conv3d(3, 8, 3), b=nn.BatchNorm3d(8), c=nn.ConvTranspose3d(8, 4, 3)),
        "a: -> a | b = a | c: a",
        shape=(2, 3, 5, 5, 5),
    ),
    "linear on tokens": Case(
        Net(deconv, a=nn.Linear(6, 8), b=nn.Linear(8, 10), c=nn.Linear(10, 4)),
        "a: -> a | b: a -> b | c: b",
        shape=(2, 5, 6),
    ),
    "linear without bias on tokens": Case(
        Net(deconv, a=nn.Linear(6, 8, bias=False), b=nn.Linear(8, 10, bias=False), c=nn.Linear(10, 4, bias=False)),
        "a: -> a | b: a -> b | c: b",
        shape=(2, 5, 6),
    ),
    "CP block": Case(
        Net(deconv, a=conv(3, 8), b=nd.CPConv2d(8, 6, (3, 3), 2, padding=1), c=conv(6, 4)), "a: -> a | b: a -> b | c: b"
    ),
    "channel map": Case(
        Net(
            lambda n, x: n.out(n.b(F.relu(n.a(x))) + n.map(n.a(x))),
            a=conv(3, 8),
            b=conv(8, 12),
            map=ChannelMap([-1, -1, *range(8), -1, -1]),
            out=conv(12, 4),
        ),
        "a: -> a | b: a -> b | map: a -> b | out: b",
    ),
    "written into rows": Case(two(rows), ADDED, ("a",)),
    "one image without batch": Case(between(F.relu), SIMPLE, shape=(3, 8, 8)),
    # Operators in which channels meet.
    "add": Case(two(torch.add), ADDED),
    "add in place": Case(two(lambda a, b: F.relu_(a).add_(b, alpha=2)), ADDED),
    "maximum": Case(two(torch.maximum), ADDED),
    "where": Case(two(lambda a, b: torch.where(a > b, a, -b)), ADDED),
    "multiply by vectors": Case(
        Net(gate, a=conv(3, 8), down=conv(8, 2, 1), up=conv(2, 8, 1), b=conv(8, 4)),
        "a: -> a | down: a -> down | up: down -> a | b: a",
    ),
    "multiply by one channel": Case(
        Net(lambda n, x: n.b(n.a(x) * n.c(x).sigmoid()), c=conv(3, 1), a=conv(3, 8), b=conv(8, 4)), SIMPLE
    ),
    "residual": Case(
        Net(lambda n, x: n.c(n.a(x) + n.b(F.relu(n.a(x)))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        "a: -> a | b: a -> a | c: a",
    ),
    # Operators that move channels.
    "concatenate": Case(two(lambda a, b: torch.cat([a, b, a], 1), 24), "a: -> a | b: -> b | c: a b a"),
    "concatenate images": Case(two(lambda a, b: torch.cat([a, b])), ADDED, ("a",)),
    "stack": Case(two(lambda a, b: torch.stack([a, b], 1).flatten(0, 1)), ADDED, ("a",)),
    "written into zeros": Case(
        two(lambda a, b: torch.cat([a, a, b, b]).index_put((torch.tensor([1, 0]),), b)), ADDED, ("a",)
    ),
    "flatten": Case(two(lambda a, b: (a + b).flatten(1), last=nn.Linear(8 * 64, 5)), "a: -> a | b: -> a | c: a*64"),
    "flatten and unflatten": Case(between(lambda y: y.flatten(1).unflatten(1, (-1, 8, 8))), SIMPLE),
    "norm of flattened maps": Case(
        Net(lambda n, x: n.fc(n.bn(n.a(x).flatten(1))), a=conv(3, 8), bn=nn.BatchNorm1d(512), fc=nn.Linear(512, 5)),
        "a: -> a | bn = a*64 | fc: a*64",
    ),
    "flatten, channels last": Case(
        Net(lambda n, x: n.fc(n.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 8, 7, stride=4), fc=nn.Linear(32, 5)),
        "a: -> a | fc: a a a a",
    ),
    "permute": Case(between(lambda y: y.permute(1, 0, 3, 2).transpose(0, 1)), SIMPLE),
    "chosen images": Case(between(lambda y: y[torch.tensor([1, 0, 1])][:2]), SIMPLE),
    "each image": Case(between(lambda y: torch.stack([image.flip(2) for image in y])), SIMPLE),
    "padding": Case(between(lambda y: F.pad(y, (1, 2, 0, 1))), SIMPLE),
    "copied": Case(between(lambda y: torch.zeros_like(y).copy_(y)), SIMPLE),
    # Operators on each channel by itself.
    "pooling": Case(between(lambda y: F.adaptive_max_pool2d(F.avg_pool2d(F.max_pool2d(y, 3, 1), 2), 2)), SIMPLE),
    "interpolation": Case(
        between(lambda y: F.interpolate(F.interpolate(y, scale_factor=2), 9, mode="bilinear")), SIMPLE
    ),
    "activations": Case(
        between(lambda y: F.hardswish(F.silu(y)) + F.gelu(y).clamp(0, 6) * F.hardsigmoid(y) - F.leaky_relu(y)), SIMPLE
    ),
    "softmax over positions": Case(between(lambda y: y * y.flatten(2).softmax(2).view_as(y)), SIMPLE),
    "statistics over positions": Case(
        between(lambda y: y - y.amax(2, keepdim=True) / y.std((2, 3), keepdim=True)), SIMPLE
    ),
    "mean over positions": Case(
        Net(lambda n, x: n.fc(n.a(x).mean((2, 3))), a=conv(3, 8), fc=nn.Linear(8, 5)), "a: -> a | fc: a"
    ),
    "half precision and back": Case(between(lambda y: y.double().to(y)), SIMPLE),
    "RoIAlign": Case(between(lambda y: roi_align(y, BOXES.to(y), 4)), SIMPLE),
    "RoIAlign of levels": Case(
        pyramid(MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=32)), "a: -> a | b: -> a | fc: a*9", ("a",)
    ),
    "RoIAlign of levels, gathered": Case(
        pyramid(GatheredRoIAlign(["0", "1"], 3, 2, canonical_scale=32)), "a: -> a | b: -> a | fc: a*9", ("a",)
    ),
    # Layers that run several times.
    "shared head": Case(
        Net(heads_of_one_size, a=conv(3, 8), b=conv(3, 8), head=conv(8, 6), out=conv(6, 4)),
        "a: -> a | b: -> a | head: a -> head | out: head",
        ("a",),
    ),
    "twice the same layer": Case(
        Net(lambda n, x: n.c(n.b(F.relu(n.b(n.a(x))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        "a: -> a | b: a -> a | c: a",
        ("a",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_derived_plan_is_that_by_hand(case: str) -> None:
    net, plan, separate, shape = CASES[case]
    torch.manual_seed(0)
    derived = nd.derive_plan(net, torch.rand(shape))
    assert written(derived.plan) == {line.replace(": ->", ":  ->") for line in plan.split(" | ")}
    assert derived.plan.separate == set(separate)
    last = list(dict(net.named_children()))[-1]
    assert derived.whole.keys() - {last} <= {"c"}
    assert all(width == _filters(net.get_submodule(group)) for group, width in derived.plan.widths.items())


def _filters(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
