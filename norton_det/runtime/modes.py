"""Evaluation mode within a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """Put a network into evaluation mode within the block, and restore the mode of each of its modules afterwards.

    Example:
        >>> from torch import nn
        >>> from norton_det.runtime.modes import evaluating
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())
        >>> with evaluating(net):
        ...     print(net.training, net[0].training)
        False False
        >>> net.training, net[0].training, net[1].training
        (True, True, False)
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, training in modes:
            module.training = training
