"""Training over all epochs, with evaluation and output files.

- ``checkpoint.pth``: the complete state. It is written before the evaluation of an epoch, and once more after it. It is
  kept as ``model_EPOCH.pth`` of the last epoch, of the one before and of the best, or of every epoch.
- ``last.safetensors`` and ``best.safetensors``: the network, or its moving average, after the last epoch and after the
  epoch with the best metric (top-1 accuracy of a classifier, AP of a detector).
- ``metrics.jsonl``: a line for some iterations (see :func:`norton_det.training.loop.train_one_epoch`), and a line for
  each epoch with its number, its last learning rate, the mean training loss, the metrics of the evaluation, and the
  seconds of training since the epoch was begun or resumed.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from norton_det.checkpoint import save
from norton_det.errors import TerminatedError
from norton_det.runtime.distributed import compute_once, data_parallel, is_main
from norton_det.runtime.progress import clock
from norton_det.runtime.run_folder import BEST, CHECKPOINT, LAST, name_of_epoch
from norton_det.runtime.signals import Stop, catch_signals, end_if_stopped
from norton_det.training.history import MetricsFile, best_of, is_over, kept_epochs, summary
from norton_det.training.loop import Task, TrainOptions, train_one_epoch
from norton_det.training.state import TrainingState

logger = logging.getLogger(__name__)

KEEP = ("few", "all")
"""Epochs whose checkpoints are kept: the last, the one before and the best; or all."""
OnLine = Callable[[dict[str, Any]], None]


def fit(
    state: TrainingState,
    task: Task,
    options: TrainOptions,
    *,
    epochs: int,
    folder: str | Path,
    args: Mapping[str, Any],
    eval_every: int = 1,
    patience: int | None = None,
    keep: str = "few",
    on_line: OnLine = lambda line: None,
) -> None:
    """Train from the current epoch of ``state`` to the last one; evaluate and write the files.

    Args:
        state: the state. It is updated in place.
        task: the task.
        options: options of the training loop.
        epochs: total number of epochs.
        folder: folder of the files; it must exist.
        args: command-line arguments; they are stored in the checkpoint.
        eval_every: number of epochs between evaluations; the last epoch is always evaluated.
        patience: number of evaluations in succession without a better metric after which training ends; None: no limit.
        keep: one of :data:`KEEP`.
        on_line: called with each new line of ``metrics.jsonl``.

    Raises:
        TerminatedError: a signal was received, by any process. It is raised in all of them, after the update that goes
            on, or within an evaluation. The checkpoint contains everything up to the last update.
        NonFiniteLossError: the loss is infinite or NaN.
    """
    begin = time.monotonic()
    model, folder = data_parallel(state.model, task.device), Path(folder)
    add = _line_writer(folder, state, on_line)
    schedule = _Schedule(epochs, eval_every)
    try:
        with catch_signals() as stop:
            end_if_stopped()  # what came before is for all processes alike
            while not is_over(state.history, task.best, epoch=state.epoch, epochs=epochs, patience=patience):
                _train_epoch(model, state, task, options, schedule, stop, add, partial(state.save, folder, args))
                compute_once(partial(_write, state, task.best, folder, args, keep))
                add(state.history[-1])
    except TerminatedError as error:
        position = f"epoch {state.epoch + 1}, batch {state.step}"
        text = f"stopped at {position}; resume with --resume {folder / CHECKPOINT}"
        raise TerminatedError(text, error.signal) from None
    if state.epoch + 1 < epochs:
        logger.info("Stopped: no better %s in %d evaluations", task.best, patience)
    logger.info("Training time %s: %s", clock(time.monotonic() - begin), summary(state.history, task.best))


def _train_epoch(
    model: nn.Module,
    state: TrainingState,
    task: Task,
    options: TrainOptions,
    schedule: "_Schedule",
    stop: Stop,
    on_line: OnLine,
    save: Callable[..., None],
) -> None:
    """Train and evaluate for the rest of an epoch.

    Raises:
        TerminatedError: a signal was received. The checkpoint was written after the last update.
    """
    start = time.monotonic()
    batches = task.training(state.epoch + 1, state.step)
    later = schedule.later(state, state.step + len(batches))
    train_one_epoch(model, state, batches, task, options, stop, on_line=on_line, later=later)
    compute_once(partial(save, numbered=False))
    end_if_stopped()
    seconds = time.monotonic() - start
    _finish_epoch(state, options, schedule.evaluate(state, task), seconds)
    best = summary(state.history, task.best)
    logger.info("Epoch: [%d] train_loss: %.4f  %s", state.epoch, state.history[-1]["train_loss"], best)


class _Schedule:
    """When is evaluated, and what is left to do.

    Args:
        epochs: total number of epochs.
        every: number of epochs between evaluations.
    """

    def __init__(self, epochs: int, every: int) -> None:
        self.due = [epoch for epoch in range(epochs) if (epoch + 1) % every == 0 or epoch + 1 == epochs]
        self.epochs = epochs
        self.seconds = 0.0  # of the last evaluation

    def evaluate(self, state: TrainingState, task: Task) -> dict[str, float | None]:
        """Return the metrics after an epoch, none if no evaluation is due."""
        if state.epoch + 1 not in self.due:
            return {}
        start = time.monotonic()
        metrics = task.evaluate(state.network)
        self.seconds = time.monotonic() - start
        return metrics

    def later(self, state: TrainingState, steps: int) -> Callable[[float], float]:
        """Return the seconds that the run takes after the batches of the next epoch, of the seconds of a batch."""
        evaluations = sum(epoch > state.epoch for epoch in self.due) * self.seconds
        batches = (self.epochs - state.epoch - 2) * steps
        return lambda seconds: seconds * batches + evaluations


def _line_writer(folder: Path, state: TrainingState, on_line: OnLine) -> OnLine:
    """Return what is done with a line of ``metrics.jsonl``: in the first process it is written."""
    if not is_main():
        return lambda line: None
    file = MetricsFile(folder, state)

    def add(line: dict[str, Any]) -> None:
        file.add(line)
        on_line(line)

    return add


def _finish_epoch(
    state: TrainingState, options: TrainOptions, metrics: Mapping[str, float | None], seconds: float
) -> None:
    """Advance the state to the next epoch, and the learning rate with it."""
    lr = state.optimizer.param_groups[0]["lr"]
    if options.schedule_by == "epoch":
        state.schedule.step()
    state.epoch += 1
    line = {"epoch": state.epoch, "lr": lr, "train_loss": state.loss / state.step}
    state.history.append({**line, **metrics, "seconds": round(seconds, 3)})
    state.step, state.loss = 0, 0.0


def _write(state: TrainingState, metric: str, folder: Path, args: Mapping[str, Any], keep: str) -> None:
    """Write the networks and the checkpoint after an epoch, and remove checkpoints that are kept no more.

    The checkpoint comes last: all else is done again if the run ends before.
    """
    save(state.network, state.spec, folder / LAST)
    if best_of(state.history, metric) is state.history[-1]:
        save(state.network, state.spec, folder / BEST)
    if keep == "few":
        for epoch in kept_epochs(state.history[:-1], metric) - kept_epochs(state.history, metric):
            (folder / name_of_epoch(epoch)).unlink(missing_ok=True)
    state.save(folder, args)
