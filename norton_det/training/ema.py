"""An exponential moving average of a network while it is trained."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a network's parameters and batch-norm statistics."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, current: Any, count: Any) -> None:
        # Counters and channel indices are copied: truncation would make other indices of them.
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def adjusted_decay(decay: float, *, images: int, epochs: int) -> float:
    """Return the decay by torchvision's rule, with which ``decay`` means the same whatever batch size and epochs.

    Args:
        decay: as given on the command line.
        images: that come between two updates of the average, in all processes.
        epochs: of the training.
    """
    return 1 - min(1.0, (1 - decay) * images / epochs)
