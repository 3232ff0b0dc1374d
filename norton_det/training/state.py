"""The state from which a training run goes on."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from norton_det.errors import DataError
from norton_det.files import write_atomically
from norton_det.models.weights import load_state
from norton_det.spec import Spec


@dataclass
class TrainingState:
    """All that changes while a model is trained.

    Attributes:
        model: the network.
        spec: what it is.
        optimizer: of its parameters.
        schedule: of the learning rate.
        scaler: of mixed precision, or None.
        ema: moving average of the network, or None.
        epoch: the last epoch that is done; -1 before the first.
        step: how many batches of the next epoch are done.
        loss: sum of the losses of these batches.
        history: what was measured in each epoch, as plain values.
    """

    model: nn.Module
    spec: Spec
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None = None
    ema: AveragedModel | None = None
    epoch: int = -1
    step: int = 0
    loss: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        """What is evaluated and kept: the model, or its moving average."""
        return self.model if self.ema is None else self.ema.module

    def save(self, folder: str | Path, args: Mapping[str, Any], *, numbered: bool = True) -> None:
        """Write ``checkpoint.pth``; keys are those of torchvision's scripts.

        Args:
            folder: where to.
            args: the command line, as plain values.
            numbered: keep the same as ``model_EPOCH.pth``.
        """
        content = self._content(args)
        latest = Path(folder) / "checkpoint.pth"
        write_atomically(latest, lambda name: torch.save(content, name))
        if numbered:
            write_atomically(latest.with_name(f"model_{self.epoch}.pth"), lambda name: _link(latest, Path(name)))

    def _content(self, args: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "model_ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.loss,
            "history": self.history,
            "args": dict(args),
            "spec": self.spec.to_json(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }

    def restore(self, content: Mapping[str, Any], path: str | Path) -> None:
        """Go back to a state that :meth:`save` wrote.

        Args:
            content: of the file.
            path: its name, for messages.

        Raises:
            DataError: the file is no training checkpoint, or one of another network or optimizer.
        """
        if missing := [key for key in self._content({}) if key not in content]:
            raise DataError(f"{path}: lacks {', '.join(missing)}; expected a training checkpoint")
        load_state(self.model, content["model"], path)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["lr_scheduler"])
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: its optimizer or lr_scheduler is another one: {error}") from None
        # torch warns of a schedule that steps before its optimizer: the run that is gone on with did step.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self.scaler is not None and content["scaler"]:  # that of a run without mixed precision is empty
            self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            if content["model_ema"] is None:
                raise DataError(f"{path}: lacks model_ema; expected a checkpoint of a training with --model-ema")
            load_state(self.ema, content["model_ema"], path)
        self.epoch, self.step, self.loss = content["epoch"], content["step"], content["loss"]
        self.history = list(content["history"])
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no links."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
