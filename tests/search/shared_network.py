"""A small network with what a detector has: a layer that runs on two levels, and one that reads flattened maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

import norton_det as nd
from norton_det.models import ARCHITECTURES


class Shared(nn.Module):
    """Images (N, 3, 16, 16) to logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.lateral = nn.Conv2d(12, 16, 1)
        self.head = nn.Conv2d(16, 16, 3, padding=1)
        self.fc6 = nn.Linear(16 * 16, 24)
        self.out = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.lateral(self.stem(x).tanh())
        levels = [self.head(x).tanh(), self.head(nn.functional.avg_pool2d(x, 2)).tanh()]
        pooled = torch.stack([nn.functional.adaptive_avg_pool2d(level, 4) for level in levels]).mean(0)
        logits: Tensor = self.out(self.fc6(pooled.flatten(1)).tanh())
        return logits


@contextmanager
def shared_architecture() -> Iterator[nd.Architecture]:
    """Register the architecture of :class:`Shared` within the block."""
    widths = {"stem": 12, "lateral": 16, "head": 16, "fc6": 24}
    fc6 = replace(nd.Layer("fc6", ("head",), "fc6"), spatial=16)
    layers = (
        nd.Layer("stem", (), "stem"),
        nd.Layer("lateral", ("stem",), "lateral"),
        nd.Layer("head", ("lateral",), "head"),
        fc6,
        nd.Layer("out", ("fc6",)),
    )
    rates = tuple(nd.RateEntry(group, (group,)) for group in widths)
    plan = nd.ChannelPlan(widths, layers)
    architecture = nd.Architecture("shared", Shared, plan, rates, 5, 16, classifier="out", dataset="cifar10")
    nd.register_architecture(architecture)
    try:
        yield architecture
    finally:
        del ARCHITECTURES._items["shared"]
