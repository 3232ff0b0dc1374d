"""Exponential moving average (EMA) of a network during training."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a network's parameters and batch-norm statistics.

    Args:
        model: the network; it is copied.
        decay: weight of the old average in an update, 0 to 1.

    Returns:
        The average. Its ``update_parameters(model)`` makes an update; the first update copies the network.

    Example:
        >>> from torch import nn
        >>> from norton_det.training.ema import moving_average
        >>> net = nn.Linear(1, 1, bias=False)
        >>> average = moving_average(net, decay=0.9)
        >>> for value in (0.0, 1.0):
        ...     _ = nn.init.constant_(net.weight, value)
        ...     average.update_parameters(net)
        >>> round(average.module.weight.item(), 3)
        0.1
    """
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, current: Any, count: Any) -> None:
        # Integers (counters, channel indices) are copied: the truncated average of two indices is a third one.
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def adjusted_decay(decay: float, *, images: int, epochs: int) -> float:
    """Return a decay by torchvision's rule, which makes ``decay`` independent of the batch size and of the epochs.

    Args:
        decay: the decay as given on the command line.
        images: number of images between two updates of the average, in all processes.
        epochs: total number of epochs.
    """
    return 1 - min(1.0, (1 - decay) * images / epochs)
