"""From the channels that layers write and read to the groups of a channel plan."""

import torch

from norton_det.channels.following.follower import Followed
from norton_det.channels.following.labels import Labels
from norton_det.channels.plan import ChannelPlan, Layer


def settled(layers: list[Followed], labels: Labels) -> ChannelPlan:
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
