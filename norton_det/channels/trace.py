"""Derive a channel plan by running a network on an example."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.channels.follow import Followed, Follower
from norton_det.channels.labels import Labels
from norton_det.channels.narrowing_check import NarrowingCheck
from norton_det.channels.operators import rule_of
from norton_det.channels.plan import ChannelPlan, Layer
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
        outputs = net(*example)
    follower.fix(outputs, "they are an output of the network")
    _check_all_ran(net, follower)
    layers = follower.followed()
    for layer in layers:
        if layer.obstacle:
            for labels in (layer.inputs, layer.outputs):
                follower.labels.fix([] if labels is None else labels, layer.obstacle)
    plan = _settled(layers, follower.labels)
    check = NarrowingCheck(net, example)
    while failing := check.failing(plan):
        for layer in layers:
            if layer.outputs is not None and layer.name in failing:  # the others follow
                follower.labels.fix(layer.outputs, failing[layer.name])
        plan = _settled(layers, follower.labels)
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
            f"{', ...' if len(silent) > 5 else ''}; expected an example on which all run: one in which a detector finds "
            "objects; without layers that only training uses"
        )


def _settled(layers: list[Followed], labels: Labels) -> ChannelPlan:
    """Return the plan of the channels that are free, fixing all that a plan cannot describe."""
    while True:
        groups = _Groups(layers, labels)
        described = [groups.describe(layer) for layer in layers]
        if not groups.changed:
            break
    named = [layer for layer in described if layer.reads or layer.writes]
    return ChannelPlan(groups.widths, tuple(named), groups.separate())


class _Groups:
    """The groups of channels at present: each is all that some layers write, in this order.

    Attributes:
        widths: number of channels of each group.
        changed: whether channels were fixed because no groups are possible with them.
    """

    def __init__(self, layers: list[Followed], labels: Labels) -> None:
        self._labels, self._layers = labels, layers
        self.changed = False
        self.widths: dict[str, int] = {}
        self._channels: dict[str, list[int]] = {}
        self._group_of: dict[int, str] = {}
        self._writes: dict[str, str] = {}
        for layer in layers:
            if layer.outputs is not None:
                self._add(layer, labels.roots(layer.outputs))

    def describe(self, layer: Followed) -> Layer:
        """Return a layer in terms of the groups."""
        writes = self._writes.get(layer.name)
        reads, spatial = self._parse(layer) if layer.inputs is not None else ((), 1)
        return Layer(layer.name, reads, writes, in_place=layer.outputs is None, spatial=spatial)

    def separate(self) -> frozenset[str]:
        """Return the groups with several writers no two of which meet."""
        met: dict[str, list[int]] = {}
        for layer in self._layers:
            if layer.outputs is not None and (group := self._writes.get(layer.name)):
                met.setdefault(group, []).append(self._labels.met(layer.outputs)[0])
        return frozenset(group for group, roots in met.items() if len(set(roots)) == len(roots) > 1)

    def _add(self, layer: Followed, roots: list[int]) -> None:
        if reason := self._labels.reason(roots):
            self._fix(roots, reason)
            return
        present = {self._group_of.get(root) for root in roots}
        if len(set(roots)) < len(roots):
            self._fix(roots, f"channels of {layer.name} meet each other")
        elif present == {None}:
            self._channels[layer.name] = roots
            self.widths[layer.name] = len(roots)
            self._group_of |= dict.fromkeys(roots, layer.name)
            self._writes[layer.name] = layer.name
        elif len(present) == 1 and self._channels[group := str(present.pop())] == roots:
            self._writes[layer.name] = group
        else:
            others = [root for group in present if group for root in self._channels[group]]
            self._fix([*roots, *others], f"channels of {layer.name} meet others in part or in another order")

    def _parse(self, layer: Followed) -> tuple[tuple[str, ...], int]:
        """Return which groups a layer reads, and how often each channel is repeated."""
        assert layer.inputs is not None
        roots = self._labels.roots(layer.inputs)
        if not any(roots):
            return (), 1
        values, counts = torch.tensor(roots).unique_consecutive(return_counts=True)
        channels, spatial, reads = values.tolist(), int(counts[0]), []
        if self._labels.reason(roots) or any(root not in self._group_of for root in roots):
            self._fix(roots, f"{layer.name} reads them together with channels that stay")
            return (), 1
        at = 0
        while at < len(channels):
            group = self._group_of[channels[at]]
            if channels[at : at + self.widths[group]] != self._channels[group]:
                break
            reads.append(group)
            at += self.widths[group]
        if at < len(channels) or bool((counts != spatial).any()):
            self._fix(roots, f"{layer.name} reads them in part or in another order")
            return (), 1
        return tuple(reads), spatial

    def _fix(self, roots: list[int], reason: str) -> None:
        self.changed |= self._labels.fix(roots, reason)


def _whole(layers: list[Followed], labels: Labels) -> dict[str, str]:
    """Return why the channels that layers write, or all of a layer's channels, stay."""
    reasons = {
        layer.name: layer.obstacle or (labels.reason(layer.outputs) if layer.outputs is not None else None)
        for layer in layers
    }
    return {name: reason for name, reason in reasons.items() if reason}
