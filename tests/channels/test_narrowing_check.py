"""The check of a plan by narrowing finds plans that are wrong."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written_plans import Net, written

import norton_det as nd
from norton_det.channels.narrow import narrow
from norton_det.channels.narrowing_check import NarrowingCheck
from norton_det.errors import UsageError

MAP = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def run(n: Any, x: Tensor) -> Tensor:
    a = F.relu(n.norm(n.a(x)))
    added = n.b(a) + n.c(a)
    return n.fc(torch.cat([a, n.d(added)], 1).flatten(1))


def network() -> Net:
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3 if name == "a" else 8, 8, 1) for name in "abcd"}
    return Net(run, norm=nn.BatchNorm2d(8), fc=nn.Linear(2 * 8 * 16, 3), **convs)


RIGHT = {"a:  -> a", "norm = a", "b: a -> b", "c: a -> b", "d: b -> d", "fc: a d*16"}
# What is changed in the right plan: layer -> its fields, and the groups with which narrowing fails.
WRONG: dict[str, tuple[dict[str, dict[str, Any]], set[str]]] = {
    "a norm is missing": ({"norm": {"reads": ()}}, {"a"}),
    "a reader is missing": ({"d": {"reads": ()}}, {"b"}),
    "another order": ({"fc": {"reads": ("d", "a")}}, {"a", "d"}),
    "a group for each of two writers that are added": ({"c": {"writes": "c"}}, {"b", "c"}),
    "another number of positions": ({"fc": {"spatial": 8}}, {"a", "d"}),
    "an output that is fixed": ({"fc": {"writes": "fc"}}, {"fc"}),
}


def test_the_right_plan_passes() -> None:
    plan = nd.derive_plan(network(), MAP).plan
    assert written(plan) == RIGHT
    assert NarrowingCheck(network(), (MAP,)).failing(plan) == {}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_is_found(case: str) -> None:
    changes, groups = WRONG[case]
    plan = nd.derive_plan(network(), MAP).plan
    layers = tuple(replace(layer, **changes.get(layer.name, {})) for layer in plan.layers)
    widths = {"a": 8, "b": 8, "c": 8, "d": 8, "fc": 3}
    present = {layer.writes for layer in layers}
    wrong = nd.ChannelPlan({group: widths[group] for group in widths if group in present}, layers)
    found = NarrowingCheck(network(), (MAP,)).failing(wrong)
    assert found.keys() == groups
    assert all(reason.startswith("narrowed, the network ") for reason in found.values())


def test_what_cannot_be_narrowed_exactly_is_refused() -> None:
    kept = torch.arange(4)
    for layer, message in (
        (nn.GroupNorm(2, 8), "a GroupNorm with num_groups=2; expected num_groups=8"),
        (nn.Conv2d(8, 8, 3, groups=2), "a convolution with groups=2; expected groups=1"),
        (nn.ConvTranspose2d(8, 8, 3, groups=4), "a transposed convolution with groups=4; expected groups=1"),
        (nn.LayerNorm(8), "a layer of type LayerNorm"),
    ):
        with pytest.raises(UsageError, match=f"cannot narrow {message}"):
            narrow(layer, kept, kept)
