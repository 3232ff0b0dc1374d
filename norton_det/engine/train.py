"""The training loop of detectors."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from norton_det.engine.progress import ProgressLog

_WARMUP_FACTOR = 1e-3
_WARMUP_ITERATIONS = 1000


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message gives its parts and the images of the batch."""


def train_one_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    device: torch.device,
    epoch: int,
    *,
    print_freq: int = 20,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, float]:
    """Train a torchvision detector for one epoch; in the first one the learning rate rises linearly from 0.1 %.

    Args:
        model: maps images and targets to a dict of losses.
        optimizer: of its parameters.
        batches: lists of images (3, H, W) and of targets, with a length.
        device: where the model is.
        epoch: number of the epoch, from 0.
        print_freq: iterations between log lines.
        scaler: trains in mixed precision with it.

    Returns:
        The mean of each loss, and of their sum as ``loss``.

    Raises:
        NonFiniteLossError: the loss is infinite or NaN. The weights are those before the batch.
    """
    model.train()
    log = ProgressLog(f"Epoch: [{epoch}]", print_freq)
    warmup = _warmup(optimizer, len(batches)) if epoch == 0 else None  # type: ignore[arg-type]
    losses: dict[str, Tensor] = {}
    for images, targets in log.follow(batches):
        precision = torch.autocast(device.type) if scaler is not None else nullcontext()
        with precision:
            losses = model([image.to(device) for image in images], [_to(target, device) for target in targets])
            loss = torch.stack(list(losses.values())).sum()
        _check_finite(loss, losses, targets)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        log.update(lr=optimizer.param_groups[0]["lr"], loss=loss.item(), **{k: v.item() for k, v in losses.items()})
        if warmup is not None:
            warmup.step()
    return {name: meter.mean for name, meter in log.meters.items() if name != "lr"}


def _warmup(optimizer: Optimizer, batches: int) -> LinearLR | None:
    iterations = min(_WARMUP_ITERATIONS, batches - 1)
    if iterations < 1:
        return None
    return LinearLR(optimizer, start_factor=_WARMUP_FACTOR, total_iters=iterations)


def _to(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in target.items()}


def _check_finite(loss: Tensor, losses: Mapping[str, Tensor], targets: list[dict[str, Any]]) -> None:
    if not math.isfinite(loss.item()):
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        images = ", ".join(str(target.get("image_id")) for target in targets)
        raise NonFiniteLossError(f"loss is {loss.item()} ({parts}) on images {images}")
