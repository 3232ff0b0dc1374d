"""Derive a channel plan by running a network on an example."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from norton_det.channels.following.follower import Followed, Follower
from norton_det.channels.following.groups import settled
from norton_det.channels.following.labels import Labels
from norton_det.channels.following.operators import rule_of
from norton_det.channels.narrowing_check import NarrowingCheck, copied
from norton_det.channels.plan import ChannelPlan
from norton_det.errors import UsageError


@dataclass(frozen=True)
class DerivedPlan:
    """A channel plan that was derived from a network, and what stays whole.

    Attributes:
        plan: the groups that can be narrowed, and the layers that write and read them.
        whole: layer -> why the channels that it writes stay.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> nd.derive_plan(net, torch.rand(1, 4)).whole
        {'2': 'they are an output of the network'}
    """

    plan: ChannelPlan
    whole: Mapping[str, str]


def derive_plan(net: nn.Module, *example: Any) -> DerivedPlan:
    """Derive which channels of a network must be pruned together from what it computes on an example.

    The network runs once in evaluation mode, and the channels of its layers are followed through every operator. They
    are united where they are added or multiplied, and where one layer reads both. Channels that an operator uses by
    their position, or that cannot be followed, stay whole. Finally, copies of the network are narrowed by a quarter and
    compared with the network in which these channels are not read; groups with which this fails stay whole as well.

    Args:
        net: the network. It is not changed.
        example: its arguments: small images, two of them if it can, are enough. All layers must run: a detector must
            find objects in the example (with a score threshold of 0, for instance, if it has not been trained).

    Returns:
        The plan, and which layers stay whole for which reason. A group has the name of the first layer that writes it.

    Raises:
        UsageError: a layer with parameters does not run on the example, or not in the narrowed network.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
        >>> derived = nd.derive_plan(net, torch.rand(2, 3, 6, 6))
        >>> derived.plan.widths
        {'0': 8}
        >>> for layer in derived.plan.layers:
        ...     print(layer)
        Layer(name='0', reads=(), writes='0', in_place=False, spatial=1)
        Layer(name='1', reads=('0',), writes=None, in_place=True, spatial=1)
        Layer(name='3', reads=('0',), writes=None, in_place=False, spatial=16)
    """
    follower = Follower(net, rule_of)
    with _evaluating(net), follower:
        outputs = net(*copied(example))
    follower.fix(outputs, "they are an output of the network")
    _check_all_ran(net, follower)
    layers = follower.followed()
    for layer in layers:
        if layer.obstacle:
            for labels in (layer.inputs, layer.outputs):
                follower.labels.fix([] if labels is None else labels, layer.obstacle)
    plan = settled(layers, follower.labels)
    check = NarrowingCheck(net, example)
    while failing := check.failing(plan):
        for layer in layers:
            if layer.outputs is not None and layer.name in failing:  # the others follow
                follower.labels.fix(layer.outputs, failing[layer.name])
        plan = settled(layers, follower.labels)
    return DerivedPlan(plan, _whole(layers, follower.labels))


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Set evaluation mode, without gradients, within the block."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_all_ran(net: nn.Module, follower: Follower) -> None:
    silent = [layer.name for layer in follower.layers.values() if not layer.ran]
    if silent:
        raise UsageError(
            f"layers of {type(net).__name__} did not run on the example: {', '.join(silent[:5])}"
            f"{', ...' if len(silent) > 5 else ''}; expected an example on which all run (a detector must "
            "detect something in it) and a network without layers that only training uses"
        )


def _whole(layers: list[Followed], labels: Labels) -> dict[str, str]:
    """Return why the channels that layers write, or all of a layer's channels, stay."""
    reasons = {
        layer.name: layer.obstacle or (labels.reason(layer.outputs) if layer.outputs is not None else None)
        for layer in layers
    }
    return {name: reason for name, reason in reasons.items() if reason}
