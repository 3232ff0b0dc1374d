"""Optimizers, schedules, and the state from which a training run goes on."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torchvision.ops._utils import split_normalization_params

from norton_det.checkpoint import write_atomically
from norton_det.errors import DataError, UsageError
from norton_det.spec import Spec
from norton_det.weights import load_state


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float | None = None,
) -> Optimizer:
    """Return an optimizer of the trainable parameters.

    Args:
        model: whose parameters are trained.
        name: "sgd", "sgd_nesterov" or "adamw" (which has no momentum).
        lr: learning rate.
        momentum: of SGD.
        weight_decay: of all parameters, or
        norm_weight_decay: another one for those of normalisation layers.

    Raises:
        UsageError: an unknown name.
    """
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if norm_weight_decay is not None:
        pairs = zip(split_normalization_params(model), (norm_weight_decay, weight_decay), strict=True)
        groups = [{"params": params, "weight_decay": decay} for params, decay in pairs if params]
    if name in ("sgd", "sgd_nesterov"):
        return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=name == "sgd_nesterov")
    if name == "adamw":
        return AdamW(groups, lr=lr, weight_decay=weight_decay)
    raise UsageError(f"unknown optimizer {name!r}; expected one of: sgd, sgd_nesterov, adamw")


def make_schedule(optimizer: Optimizer, name: str, *, epochs: int, steps: list[int], gamma: float) -> LRScheduler:
    """Return a schedule by epochs: "multisteplr" (times ``gamma`` at ``steps``) or "cosineannealinglr".

    Raises:
        UsageError: an unknown name.
    """
    if name == "multisteplr":
        return MultiStepLR(optimizer, milestones=steps, gamma=gamma)
    if name == "cosineannealinglr":
        return CosineAnnealingLR(optimizer, T_max=epochs)
    raise UsageError(f"unknown lr_scheduler {name!r}; expected one of: multisteplr, cosineannealinglr")


@dataclass
class TrainingState:
    """All that changes while a model is trained.

    Attributes:
        model: the network.
        spec: what it is.
        optimizer: of its parameters.
        schedule: of the learning rate.
        scaler: of mixed precision, or None.
        epoch: the last epoch that is done; -1 before the first.
    """

    model: nn.Module
    spec: Spec
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None = None
    epoch: int = -1

    def save(self, folder: str | Path, args: Mapping[str, Any]) -> None:
        """Write ``checkpoint.pth``, and the same as ``model_EPOCH.pth``; keys are those of torchvision's scripts.

        Args:
            folder: where to.
            args: the command line, as plain values.
        """
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "epoch": self.epoch,
            "args": dict(args),
            "spec": self.spec.to_json(),
            "rng": torch.get_rng_state(),
        }
        latest, numbered = Path(folder) / "checkpoint.pth", Path(folder) / f"model_{self.epoch}.pth"
        write_atomically(latest, lambda name: torch.save(content, name))
        write_atomically(numbered, lambda name: _link(latest, Path(name)))

    def restore(self, content: Mapping[str, Any], path: str | Path) -> None:
        """Go back to a state that :meth:`save` wrote.

        Args:
            content: of the file.
            path: its name, for messages.

        Raises:
            DataError: the file is no training checkpoint, or one of another network or optimizer.
        """
        wanted = ("model", "optimizer", "lr_scheduler", "epoch", "rng")
        if missing := [key for key in wanted if key not in content]:
            raise DataError(f"{path}: lacks {', '.join(missing)}; expected a training checkpoint")
        load_state(self.model, content["model"], path)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise DataError(f"{path}: its optimizer is another one: {error}") from None
        self.schedule.load_state_dict(content["lr_scheduler"])
        if self.scaler is not None and content.get("scaler") is not None:
            self.scaler.load_state_dict(content["scaler"])
        self.epoch = content["epoch"]
        torch.set_rng_state(content["rng"])


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no links."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
