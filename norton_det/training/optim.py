"""Optimizers and learning-rate schedules, with the names and defaults of torchvision's reference scripts."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
    StepLR,
)

from norton_det.errors import UsageError, expect_choice

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")
SCHEDULES = ("steplr", "multisteplr", "cosineannealinglr", "exponentiallr")
WARM_UPS = ("constant", "linear")
_WARM_UP_FACTOR = 1e-3
_WARM_UP_UPDATES = 1000
_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float | None = None,
    bias_weight_decay: float | None = None,
) -> Optimizer:
    """Return an optimizer of the trainable parameters of a network.

    Args:
        model: the network.
        name: "sgd", "sgd_nesterov", "rmsprop" or "adamw" (which has no momentum).
        lr: learning rate.
        momentum: momentum of SGD and RMSprop.
        weight_decay: weight decay of the parameters that have no other one.
        norm_weight_decay: weight decay of normalisation layers; None: ``weight_decay``.
        bias_weight_decay: weight decay of all biases, those of normalisation layers included; None: that of the layer.

    Raises:
        UsageError: an unknown name, or no momentum where one is needed.

    Example:
        >>> from torch import nn
        >>> from norton_det.training.optim import make_optimizer
        >>> optimizer = make_optimizer(nn.Linear(2, 2), "sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> optimizer.defaults["momentum"]
        0.9
    """
    expect_choice("optimizer", name, OPTIMIZERS)
    if name == "sgd_nesterov" and momentum == 0:
        raise UsageError("momentum is 0; expected more for sgd_nesterov")
    groups = _groups(model, weight_decay, norm_weight_decay, bias_weight_decay)
    if name in ("sgd", "sgd_nesterov"):
        return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=name == "sgd_nesterov")
    if name == "rmsprop":
        # torchvision's constants for MobileNet, as in its reference script.
        return RMSprop(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, eps=0.0316, alpha=0.9)
    return AdamW(groups, lr=lr, weight_decay=weight_decay)


def _groups(model: nn.Module, decay: float, norm: float | None, bias: float | None) -> list[dict[str, Any]]:
    """Return the trainable parameters, grouped by their weight decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        of_module = norm if norm is not None and isinstance(module, _NORMALIZATION) else decay
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                of_parameter = bias if bias is not None and name == "bias" else of_module
                groups.setdefault(of_parameter, []).append(parameter)
    return [{"params": params, "weight_decay": value} for value, params in groups.items()]


def make_schedule(
    optimizer: Optimizer,
    name: str,
    *,
    epochs: int,
    gamma: float = 0.1,
    steps: Sequence[int] = (),
    step_size: int = 30,
    lr_min: float = 0.0,
    warmup_epochs: int = 0,
    warmup_method: str = "constant",
    warmup_decay: float = 0.01,
    per_epoch: int = 1,
) -> LRScheduler:
    """Return a learning-rate schedule, with an optional warm-up.

    Args:
        optimizer: the optimizer whose learning rate is set.
        name: "multisteplr" (times ``gamma`` at the epochs ``steps``), "steplr" (times ``gamma`` every ``step_size``
            epochs), "exponentiallr" (times ``gamma`` every epoch) or "cosineannealinglr" (a cosine down to ``lr_min``).
        epochs: total number of epochs.
        gamma: factor of the learning rate.
        steps: epochs of multisteplr.
        step_size: epochs between the steps of steplr.
        lr_min: last learning rate of cosineannealinglr.
        warmup_epochs: number of epochs with a lower learning rate at the beginning.
        warmup_method: "linear" (the rate rises) or "constant" (it is constant, then jumps).
        warmup_decay: factor of the learning rate at the beginning of the warm-up.
        per_epoch: number of ``step()`` calls in an epoch.

    Raises:
        UsageError: an unknown name, or a warm-up that is not shorter than the training.

    Example:
        >>> from torch import nn
        >>> from torch.optim import SGD
        >>> from norton_det.training.optim import make_schedule
        >>> optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        >>> schedule = make_schedule(optimizer, "multisteplr", epochs=3, steps=[1])
        >>> optimizer.step()
        >>> schedule.step()
        >>> schedule.get_last_lr()
        [0.1]
    """
    expect_choice("lr_scheduler", name, SCHEDULES)
    expect_choice("lr_warmup_method", warmup_method, WARM_UPS)
    if not 0 <= warmup_epochs < epochs:
        raise UsageError(f"lr_warmup_epochs is {warmup_epochs}; expected at least 0 and less than epochs ({epochs})")
    main: LRScheduler
    if name == "multisteplr":
        main = MultiStepLR(optimizer, milestones=[step * per_epoch for step in steps], gamma=gamma)
    elif name == "steplr":
        main = StepLR(optimizer, step_size=step_size * per_epoch, gamma=gamma)
    elif name == "exponentiallr":
        main = ExponentialLR(optimizer, gamma=gamma ** (1 / per_epoch))
    else:
        main = CosineAnnealingLR(optimizer, T_max=(epochs - warmup_epochs) * per_epoch, eta_min=lr_min)
    if not warmup_epochs:
        return main
    duration = warmup_epochs * per_epoch
    return SequentialLR(optimizer, [_warmup(optimizer, warmup_method, warmup_decay, duration), main], [duration])


def _warmup(optimizer: Optimizer, method: str, decay: float, duration: int) -> LRScheduler:
    if method == "linear":
        return LinearLR(optimizer, start_factor=decay, total_iters=duration)
    return ConstantLR(optimizer, factor=decay, total_iters=duration)


def warm_up(optimizer: Optimizer, update: int, updates: int) -> None:
    """Set the learning rates of an update in the first epoch, in which they rise linearly from 0.1 % to 100 %.

    This is the warm-up of torchvision's detection script as a function of the update alone, without a state to save.

    Args:
        optimizer: an optimizer with a schedule, which stores the full rates.
        update: index of the update, from 0.
        updates: number of updates in the epoch; the rates rise for all of them, at most for 1000.
    """
    length = min(_WARM_UP_UPDATES, updates - 1)
    progress = min(1.0, update / length) if length > 0 else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (_WARM_UP_FACTOR + (1 - _WARM_UP_FACTOR) * progress)
