"""A small network with layers of many kinds, and its architecture."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

import norton_det as nd
from norton_det.models import ARCHITECTURES


class Small(nn.Sequential):
    """A network with layers of many kinds."""

    def __init__(self, num_classes: int) -> None:
        convs = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.LeakyReLU(0.1)]
        ends = [nn.MaxPool2d(2), nn.GroupNorm(2, 8), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*convs, *ends, nn.Linear(8, num_classes))


@contextmanager
def small_architecture() -> Iterator[nd.Architecture]:
    """Register the architecture of :class:`Small` within the block."""
    layers = (nd.Layer("0", (), "first"), nd.Layer.norm("1", ("first",)), nd.Layer("3", ("first",)))
    rates = (nd.RateEntry("first", ("first",)),)
    plan = nd.ChannelPlan({"first": 6}, layers)
    architecture = nd.Architecture("small", Small, plan, rates, 5, 16, classifier="10", dataset="cifar10")
    nd.register_architecture(architecture)
    try:
        yield architecture
    finally:
        del ARCHITECTURES._items["small"]
