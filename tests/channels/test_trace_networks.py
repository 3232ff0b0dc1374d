"""Networks that are narrowed by a derived plan compute what they do with these channels set to zero."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import get_model
from torchvision.ops.misc import FrozenBatchNorm2d
from written_plans import mask_outputs, random_kept

import norton_det as nd
from norton_det.channels.narrow import narrow_network


class Steps(nn.Module):
    """A random network: from each step to the next, and at the end a linear layer on all flattened maps."""

    def __init__(self, kinds: list[str], others: list[int], flat: bool) -> None:
        super().__init__()
        self.first, self.kinds, self.others, self.flat = nn.Conv2d(3, 6, 3, padding=1), kinds, others, flat
        widths, self.steps = [6], nn.ModuleList()
        for kind, other in zip(kinds, others, strict=True):
            layer, width = (STEPS | HARD)[kind](widths[-1], widths[other % len(widths)])
            self.steps.append(layer)
            widths.append(width)
        self.last = nn.Linear(sum(widths[-2:]) * (16 if flat else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.first(x)]
        for step, other in zip(self.steps, self.others, strict=True):
            maps.append(step(maps[-1], maps[other % len(maps)]))
        end = torch.cat(maps[-2:], 1)
        return self.last(F.avg_pool2d(end, 2).flatten(1) if self.flat else end.mean((2, 3)))


class Alone(nn.Sequential):
    """Layers on the last map only."""

    def forward(self, last: Tensor, other: Tensor) -> Tensor:
        return F.relu(super().forward(last))


class Joined(nn.Module):
    """The last map, joined with another one."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.join, self.layer = join, layer or nn.Identity()

    def forward(self, last: Tensor, other: Tensor) -> Tensor:
        return self.join(self.layer(last), other)


def _gated(last: Tensor, other: Tensor) -> Tensor:
    return other * last.mean((2, 3), keepdim=True)


def _halves(last: Tensor, other: Tensor) -> Tensor:
    first, second = last.tensor_split(2, 1)
    return torch.cat([first * 2, second], 1)


def _divisor(width: int) -> int:
    return next(divisor for divisor in range(2, width + 1) if width % divisor == 0)


def _alone(*layers: nn.Module, width: int) -> tuple[nn.Module, int]:
    return Alone(*layers), width


STEPS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "conv": lambda c, _: _alone(nn.Conv2d(c, 5, 3, padding=1), nn.BatchNorm2d(5), width=5),
    "wide": lambda c, _: _alone(nn.Conv2d(c, 9, 1, bias=False), FrozenBatchNorm2d(9), width=9),
    "depthwise": lambda c, _: _alone(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.PReLU(c), width=c),
    "transposed": lambda c, _: _alone(nn.ConvTranspose2d(c, 4, 2, 2), nn.MaxPool2d(2), width=4),
    "norm": lambda c, _: _alone(nn.GroupNorm(c, c), width=c),
    "upsampled": lambda c, _: _alone(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), width=c),
    "added": lambda c, o: (Joined(torch.add, nn.Conv2d(c, o, 1)), o),
    "gated": lambda c, o: (Joined(_gated, nn.Conv2d(c, o, 1)), o),
    "side by side": lambda c, o: (
        Joined(lambda last, other: torch.cat([last, other], 3)[..., ::2], nn.Conv2d(c, o, 1)),
        o,
    ),
}

# Steps that fix channels, or in which maps may be added to a concatenation of several.
HARD: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "concatenated": lambda c, o: (Joined(lambda last, other: torch.cat([last, other], 1)), c + o),
    "halves": lambda c, _: (Joined(_halves), c),
    "flipped": lambda c, _: (Joined(lambda last, other: last.flip(1)), c),
    "rolled": lambda c, _: (Joined(lambda last, other: last.roll(1, 1)), c),
    "shuffled": lambda c, _: (Joined(lambda last, other: last.unflatten(1, (-1, _divisor(c))).mT.flatten(1, 2)), c),
    "joint norm": lambda c, _: (Joined(lambda last, other: last, nn.GroupNorm(1, c)), c),
    "grouped": lambda c, _: _alone(nn.Conv2d(c, 2 * c, 1, groups=_divisor(c)), width=2 * c),
    "softmax": lambda c, o: (Joined(lambda last, other: other * last.softmax(1), nn.Conv2d(c, o, 1)), o),
    "by image": lambda c, o: (Joined(lambda last, other: torch.cat([last, other])[1:3], nn.Conv2d(c, o, 1)), o),
    "outer": lambda c, o: (Joined(lambda last, other: other * last.mean((1, 2))[:, None, None]), o),
}


def check_narrowed_equals_masked(net: nn.Module, example: Any, plan: nd.ChannelPlan, seed: int) -> None:
    net, kept = copy.deepcopy(net).double(), random_kept(plan, seed)
    for module in net.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    net.eval()
    masked, narrowed = copy.deepcopy(net), net
    mask_outputs(masked, plan, kept)
    narrow_network(narrowed, plan, kept)
    with torch.no_grad():
        expected, got = (tree_leaves(one(example)) for one in (masked, narrowed))
    for one, other in zip(got, expected, strict=True):
        scale = max(float(other.abs().max()), 1e-300) if other.numel() else 1.0
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-9)


def step(kinds: dict[str, Any]) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(st.sampled_from(sorted(kinds)), st.integers(0, 9))


def derived_of_steps(steps: list[tuple[str, int]], flat: bool, seed: int) -> nd.DerivedPlan:
    """Make a network of these steps, derive its plan, and check that by narrowing."""
    torch.manual_seed(seed)
    net = Steps([kind for kind, _ in steps], [other for _, other in steps], flat)
    example = torch.randn(2, 3, 8, 8)
    derived = nd.derive_plan(net, example)
    check_narrowed_equals_masked(net, example.double(), derived.plan, seed)
    return derived


@settings(deadline=None, max_examples=25)
@given(st.lists(step(STEPS), max_size=8), st.booleans(), st.integers(0, 99))
def test_narrowed_equals_masked(steps: list[tuple[str, int]], flat: bool, seed: int) -> None:
    assert derived_of_steps(steps, flat, seed).whole.keys() == {"last"}


HARD_STEPS = (st.lists(step(STEPS | HARD), min_size=1, max_size=8), st.booleans(), st.integers(0, 99))


@settings(deadline=None, max_examples=25)
@given(*HARD_STEPS)
def test_narrowed_equals_masked_with_what_stays_whole(steps: list[tuple[str, int]], flat: bool, seed: int) -> None:
    derived_of_steps(steps, flat, seed)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(*HARD_STEPS)
def test_narrowed_equals_masked_with_what_stays_whole_often(
    steps: list[tuple[str, int]], flat: bool, seed: int
) -> None:
    derived_of_steps(steps, flat, seed)


SMALL = {"min_size": 64, "max_size": 64, "weights_backbone": None, "num_classes": 3, "score_thresh": 0.0}
CANDIDATES = {**SMALL, "topk_candidates": 10}
NO_SIZE = {name: value for name, value in CANDIDATES.items() if "size" not in name}
# Networks that are in no registry of ours: their options, the number of groups, and the layers that stay whole beside
# those that predict.
GROUPED = "is a convolution with groups="
NETWORKS: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "mobilenet_v2": ({}, 25, ()),
    "mobilenet_v3_small": ({}, 27, ()),
    "efficientnet_b0": ({}, 40, ()),
    "regnet_y_400mf": ({}, 21, (GROUPED,)),
    "resnext50_32x4d": ({}, 5, (GROUPED,)),
    "densenet121": ({}, 120, ()),
    "squeezenet1_1": ({}, 25, ()),
    "shufflenet_v2_x0_5": ({}, 18, ("view takes them by position",)),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 57, ()),
    "convnext_tiny": ({}, 18, ("layer_norm normalises several", "which cannot be narrowed")),
    "swin_t": ({}, 12, ("layer_norm normalises several", "which cannot be narrowed", "view takes them by position")),
    "deeplabv3_resnet50": ({"weights_backbone": None}, 44, ()),
    "retinanet_resnet50_fpn": (CANDIDATES, 47, ()),
    "fcos_resnet50_fpn": (CANDIDATES, 39, ("group_norm normalises several", "which cannot be narrowed")),
    "ssdlite320_mobilenet_v3_large": (NO_SIZE, 37, ()),
}
PREDICTING = (
    "an output of the network",
    "view takes them by position",
    "single output channel",
    "index in",
    "meet what no",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name: str) -> None:
    options, groups, reasons = NETWORKS[name]
    torch.manual_seed(0)
    net = get_model(name, weights=None, **options)
    detector = "score_thresh" in options
    example = [torch.rand(3, 64, 64)] if detector else torch.rand(2, 3, 64, 64)
    derived = nd.derive_plan(net, example)
    assert len(derived.plan.widths) == groups
    found = [
        reason
        for reason in derived.whole.values()
        if not any(part in reason for part in PREDICTING[: 5 if detector else 1])
    ]
    assert all(any(part in reason for part in reasons) for reason in found)
    assert all(any(part in reason for reason in found) for part in reasons)
    doubled = [image.double() for image in example] if detector else example.double()
    for seed in range(3):
        check_narrowed_equals_masked(net, doubled, derived.plan, seed)
