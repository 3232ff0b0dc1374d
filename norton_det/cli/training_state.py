"""The state of a training before its first epoch, from a command's arguments."""

import argparse

import torch
from torch import nn

from norton_det.runtime.distributed import world_size
from norton_det.spec import Spec
from norton_det.training import TrainingState
from norton_det.training.ema import adjusted_decay, moving_average
from norton_det.training.optim import make_optimizer, make_schedule

OF_OPTIMIZER = ("lr", "momentum", "weight_decay", "norm_weight_decay", "bias_weight_decay")
"""Arguments of the optimizer."""
OF_SCHEDULE = {
    "gamma": "lr_gamma",
    "steps": "lr_steps",
    "step_size": "lr_step_size",
    "lr_min": "lr_min",
    "warmup_epochs": "lr_warmup_epochs",
    "warmup_method": "lr_warmup_method",
    "warmup_decay": "lr_warmup_decay",
}
"""Arguments of the learning-rate schedule, by the names of its options."""


def make_state(
    args: argparse.Namespace,
    model: nn.Module,
    spec: Spec,
    device: torch.device,
    *,
    images: int,
    schedule_updates: int = 1,
    lr: float | None = None,
) -> TrainingState:
    """Return the state before the first epoch.

    Args:
        args: of the command.
        model: the network, on its device.
        spec: of the network.
        device: where it is trained.
        images: in an update, of all processes.
        schedule_updates: how often the learning rate changes in an epoch.
        lr: the learning rate in place of that of the arguments.

    Raises:
        UsageError: values that do not go together.
    """
    options = {name: getattr(args, name) for name in OF_OPTIMIZER if name in args} | ({} if lr is None else {"lr": lr})
    optimizer = make_optimizer(model, args.opt, **options)
    options = {name: getattr(args, flag) for name, flag in OF_SCHEDULE.items() if flag in args}
    schedule = make_schedule(optimizer, args.lr_scheduler, epochs=args.epochs, per_epoch=schedule_updates, **options)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")
    ema = None
    if args.model_ema:
        decay = adjusted_decay(args.model_ema_decay, images=images * args.model_ema_steps, epochs=args.epochs)
        ema = moving_average(model, decay)
    return TrainingState(model, spec, optimizer, schedule, scaler, ema, epoch=args.start_epoch - 1)


def images_per_update(args: argparse.Namespace) -> int:
    """Return the number of images in an update, of all processes and of all batches of it."""
    return int(args.batch_size * world_size() * getattr(args, "accumulate", 1))
