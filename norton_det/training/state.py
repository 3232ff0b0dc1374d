"""The state of a training run, from which it is resumed."""

import logging
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

from norton_det.errors import DataError, one_line
from norton_det.files import write_atomically
from norton_det.models.weights import load_state
from norton_det.runtime.run_folder import CHECKPOINT, name_of_epoch
from norton_det.spec import Spec, version_of
from norton_det.training.checkpoint_fields import check_fields, check_optimizer, check_schedule

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything that changes during training.

    Attributes:
        model: the network.
        spec: the spec of the network.
        optimizer: the optimizer of its parameters.
        schedule: the learning-rate schedule.
        scaler: the gradient scaler of mixed precision, or None.
        ema: a moving average of the network, or None.
        epoch: index of the last complete epoch; -1 before the first.
        step: number of batches of the next epoch that are done.
        loss: sum of the losses of these batches.
        history: the line of ``metrics.jsonl`` of each epoch.
        iteration: number of batches since the beginning of the training.
        window: sums over the batches since the last line of an iteration in ``metrics.jsonl``, by name.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> from norton_det import Spec
        >>> from norton_det.training import TrainingState
        >>> from norton_det.training.optim import make_schedule
        >>> def new_state():
        ...     net = nn.Linear(2, 2)
        ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     schedule = make_schedule(optimizer, "steplr", epochs=2)
        ...     return TrainingState(net, Spec("resnet56_cifar", num_classes=2), optimizer, schedule)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = new_state()
        ...     state.save(folder, args={}, numbered=False)
        ...     content = torch.load(f"{folder}/checkpoint.pth", weights_only=True)
        >>> resumed = new_state()
        >>> resumed.restore(content, "checkpoint.pth")
        >>> torch.equal(resumed.model.weight, state.model.weight)
        True
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
    iteration: int = 0
    window: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the moving average if there is one, else the model."""
        return self.model if self.ema is None else self.ema.module

    def save(self, folder: str | Path, args: Mapping[str, Any], *, numbered: bool = True) -> None:
        """Write ``checkpoint.pth``, with the keys of torchvision's reference scripts and more.

        Args:
            folder: folder of the file.
            args: command-line arguments, as plain values.
            numbered: write ``model_EPOCH.pth`` with the same content as well, and first: what goes on after a kill goes
                on from ``checkpoint.pth``, and writes both again.

        Raises:
            UsageError: the folder does not exist.
        """
        content = self._content(args)
        latest, own = Path(folder) / CHECKPOINT, Path(folder) / name_of_epoch(self.epoch)
        write_atomically(own if numbered else latest, lambda name: torch.save(content, name))
        if numbered:
            write_atomically(latest, lambda name: _link(own, Path(name)))

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
            "iteration": self.iteration,
            "window": self.window,
            "args": dict(args),
            "spec": self.spec.to_json(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }

    def restore(self, content: Mapping[str, Any], path: str | Path, *, reset_schedule: bool = False) -> None:
        """Restore a state that :meth:`save` wrote, and torch's random state.

        Args:
            content: content of the file.
            path: path of the file, for the messages.
            reset_schedule: keep the options of this optimizer and this schedule, with the learning rate that they have
                at this point of the training, in place of those in the file.

        Raises:
            DataError: the file is no training checkpoint, or it is one of another network, optimizer or schedule.
        """
        content = {"iteration": 0, "window": {}, **content}  # older files lack these
        if missing := [key for key in self._content({}) if key not in content]:
            raise DataError(f"{path}: lacks {', '.join(missing)}; expected a training checkpoint")
        check_fields(content, path)
        check_optimizer(content["optimizer"], self.optimizer, path)
        check_schedule(content["lr_scheduler"], None if reset_schedule else self.schedule, path)
        if version_of(content["spec"]) < 1:
            logger.warning(
                "%s: written before format version 1, with other seeds: the rest of the run has another order of the "
                "images and other random augmentation than it would have had",
                path,
            )
        load_state(self.model, content["model"], path)
        # torch warns if a schedule steps before its optimizer; in the run that is resumed the optimizer did step.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        try:
            self._restore_optimizer(content["optimizer"], content["lr_scheduler"], reset_schedule)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise DataError(f"{path}: optimizer or lr_scheduler does not fit: {one_line(error)}") from None
        if self.scaler is not None and content["scaler"]:  # empty after a run without mixed precision
            self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            if content["model_ema"] is None:
                raise DataError(f"{path}: lacks model_ema; expected a checkpoint of a run with --model-ema")
            load_state(self.ema, content["model_ema"], path)
        self.epoch, self.step, self.loss = content["epoch"], content["step"], content["loss"]
        self.history = list(content["history"])
        self.iteration, self.window = content["iteration"], dict(content["window"])
        try:
            torch.set_rng_state(content["rng"])
        except RuntimeError as error:
            raise DataError(f"{path}: rng is no state of a random generator: {one_line(error)}") from None
        if content["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])

    def _restore_optimizer(self, optimizer: dict[str, Any], schedule: dict[str, Any], reset_schedule: bool) -> None:
        options = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(optimizer)
        if not reset_schedule:
            self.schedule.load_state_dict(schedule)
            return
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        for _ in range(schedule["last_epoch"]):
            self.schedule.step()


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
