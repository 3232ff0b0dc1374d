"""Modes of a network's modules, copies that keep them, and changes that are undone where a block fails."""

import copy
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


def copied(net: nn.Module) -> nn.Module:
    """Return a copy of a network in which each module is in the mode that it had.

    ``copy.deepcopy`` alone puts a graph of torch.fx, as of torchvision's ``create_feature_extractor``, into training
    mode.

    Example:
        >>> from torch import fx, nn
        >>> from norton_det.runtime.modes import copied
        >>> copied(fx.symbolic_trace(nn.Sequential(nn.Dropout())).eval()).training
        False
    """
    modes = {name: module.training for name, module in net.named_modules()}
    copy_ = copy.deepcopy(net)
    for name, module in copy_.named_modules():
        module.training = modes.get(name, module.training)
    return copy_


@contextmanager
def undone_on_failure(net: nn.Module) -> Iterator[None]:
    """Restore a network's parameters and buffers where the block raises an exception.

    Example:
        >>> from torch import nn
        >>> from norton_det.runtime.modes import undone_on_failure
        >>> net = nn.BatchNorm2d(1)
        >>> try:
        ...     with undone_on_failure(net):
        ...         _ = net.running_mean.add_(1)
        ...         raise ValueError
        ... except ValueError:
        ...     net.running_mean
        tensor([0.])
    """
    before = copy.deepcopy(net.state_dict())
    try:
        yield
    except BaseException:
        net.load_state_dict(before)
        raise
