"""Optimizers, and schedules of the learning rate; names and defaults are those of torchvision's reference scripts."""

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

from norton_det.errors import UsageError

_SCHEDULES = "multisteplr, steplr, exponentiallr, cosineannealinglr"
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
    """Return an optimizer of the trainable parameters.

    Args:
        model: whose parameters are trained.
        name: "sgd", "sgd_nesterov", "rmsprop" or "adamw" (which has no momentum).
        lr: learning rate.
        momentum: of SGD and RMSprop.
        weight_decay: of all parameters, or
        norm_weight_decay: another one for those of normalisation layers, and
        bias_weight_decay: for biases, which goes first.

    Raises:
        UsageError: an unknown name.
    """
    groups = _groups(model, weight_decay, norm_weight_decay, bias_weight_decay)
    if name in ("sgd", "sgd_nesterov"):
        return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=name == "sgd_nesterov")
    if name == "rmsprop":
        # torchvision's constants for MobileNet, as in its reference script.
        return RMSprop(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, eps=0.0316, alpha=0.9)
    if name == "adamw":
        return AdamW(groups, lr=lr, weight_decay=weight_decay)
    raise UsageError(f"unknown optimizer {name!r}; expected one of: sgd, sgd_nesterov, rmsprop, adamw")


def _groups(model: nn.Module, decay: float, norm: float | None, bias: float | None) -> list[dict[str, Any]]:
    """Return the trainable parameters, grouped by their weight decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        own = norm if norm is not None and isinstance(module, _NORMALIZATION) else decay
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                wanted = bias if bias is not None and name == "bias" else own
                groups.setdefault(wanted, []).append(parameter)
    return [{"params": params, "weight_decay": wanted} for wanted, params in groups.items()]


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
    """Return a schedule, with a warm-up before it where that is wanted.

    Args:
        optimizer: whose rate it sets.
        name: "multisteplr" (times ``gamma`` at ``steps``), "steplr" (every ``step_size`` epochs), "exponentiallr"
            (every epoch) or "cosineannealinglr" (down to ``lr_min``).
        epochs: in all.
        gamma: factor by which the rate falls.
        steps: epochs of multisteplr.
        step_size: epochs of steplr.
        lr_min: last rate of the cosine.
        warmup_epochs: how long the rate is kept lower at first.
        warmup_method: "linear" (it rises) or "constant" (it jumps).
        warmup_decay: the factor it starts with.
        per_epoch: how often the schedule will be stepped in an epoch.

    Raises:
        UsageError: an unknown name, or a warm-up that leaves no epoch.
    """
    if not 0 <= warmup_epochs < epochs:
        raise UsageError(f"lr_warmup_epochs is {warmup_epochs}; expected at least 0 and less than epochs ({epochs})")
    main: LRScheduler
    if name == "multisteplr":
        main = MultiStepLR(optimizer, milestones=[step * per_epoch for step in steps], gamma=gamma)
    elif name == "steplr":
        main = StepLR(optimizer, step_size=step_size * per_epoch, gamma=gamma)
    elif name == "exponentiallr":
        main = ExponentialLR(optimizer, gamma=gamma ** (1 / per_epoch))
    elif name == "cosineannealinglr":
        main = CosineAnnealingLR(optimizer, T_max=(epochs - warmup_epochs) * per_epoch, eta_min=lr_min)
    else:
        raise UsageError(f"unknown lr_scheduler {name!r}; expected one of: {_SCHEDULES}")
    if not warmup_epochs:
        return main
    duration = warmup_epochs * per_epoch
    return SequentialLR(optimizer, [_warmup(optimizer, warmup_method, warmup_decay, duration), main], [duration])


def _warmup(optimizer: Optimizer, method: str, decay: float, duration: int) -> LRScheduler:
    if method == "linear":
        return LinearLR(optimizer, start_factor=decay, total_iters=duration)
    if method == "constant":
        return ConstantLR(optimizer, factor=decay, total_iters=duration)
    raise UsageError(f"unknown lr_warmup_method {method!r}; expected one of: linear, constant")


def warm_up(optimizer: Optimizer, update: int, updates: int) -> None:
    """Set the learning rates of an update in the first epoch: from 0.1 % they rise linearly to the full ones.

    As in torchvision's detection script, but by the position alone, so that nothing has to be kept to go on.

    Args:
        optimizer: one that has a schedule, which keeps the full rates.
        update: number of the update, from 0.
        updates: of the epoch; the rise takes all of them, or 1000.
    """
    length = min(_WARM_UP_UPDATES, updates - 1)
    share = min(1.0, update / length) if length > 0 else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (_WARM_UP_FACTOR + (1 - _WARM_UP_FACTOR) * share)
