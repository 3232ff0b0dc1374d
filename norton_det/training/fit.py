"""Training from the first epoch to the last, with its files.

- ``checkpoint.pth``: all to go on from. It is written when an epoch's batches are done, and once more after all else.
- ``last.safetensors`` and ``best.safetensors``: the network, or its moving average, after the last epoch and after the
  one whose figure was the best (a classifier's top-1, a detector's AP).
- ``metrics.jsonl``: a line an epoch with its number, the learning rate at its end, the mean training loss, the figures
  measured, and the seconds of training since the epoch began or was resumed.
"""

import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from norton_det.checkpoint import save
from norton_det.errors import TerminatedError
from norton_det.files import write_atomically
from norton_det.runtime.distributed import any_process, data_parallel, is_main
from norton_det.runtime.signals import catch_sigterm
from norton_det.training.loop import Task, TrainOptions, train_one_epoch
from norton_det.training.state import TrainingState

logger = logging.getLogger(__name__)


def fit(
    state: TrainingState,
    task: Task,
    options: TrainOptions,
    *,
    epochs: int,
    folder: str | Path,
    args: Mapping[str, Any],
    eval_every: int = 1,
    numbered: bool = False,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Train up to ``epochs`` epochs in all, from wherever ``state`` is; evaluate and write the files.

    Args:
        state: what is trained.
        task: what for.
        options: how.
        epochs: number of epochs in all.
        folder: where the files go; it must exist.
        args: the command line, kept in the checkpoint.
        eval_every: epochs from one evaluation to the next; the last epoch is evaluated always.
        numbered: keep the checkpoint of each epoch, as ``model_EPOCH.pth``.
        on_epoch: called with the epoch's line of ``metrics.jsonl``.

    Raises:
        TerminatedError: SIGTERM came; the checkpoint holds what was done up to the last update.
        NonFiniteLossError: the loss is infinite or NaN.
    """
    begin = time.monotonic()
    model = data_parallel(state.model, task.device)
    with catch_sigterm() as terminated:
        while state.epoch + 1 < epochs:
            start = time.monotonic()
            batches = task.training(state.epoch + 1, state.step)
            complete = train_one_epoch(model, state, batches, task, options, terminated)
            if is_main():
                state.save(folder, args, numbered=False)
            if any_process(terminated(), task.device):
                place = f"epoch {state.epoch + 1}, batch {state.step}"
                raise TerminatedError(f"stopped at {place}; go on with --resume {Path(folder) / 'checkpoint.pth'}")
            if complete:
                due = (state.epoch + 2) % eval_every == 0 or state.epoch + 2 == epochs
                _finish_epoch(state, task, options, Path(folder), time.monotonic() - start, evaluated=due)
                if is_main():
                    state.save(folder, args, numbered=numbered)
                    if on_epoch is not None:
                        on_epoch(state.history[-1])
    logger.info("Training time %s", datetime.timedelta(seconds=int(time.monotonic() - begin)))


def _finish_epoch(
    state: TrainingState, task: Task, options: TrainOptions, folder: Path, seconds: float, *, evaluated: bool
) -> None:
    """Evaluate, move on to the next epoch and write all files but the checkpoint."""
    lr = state.optimizer.param_groups[0]["lr"]
    if options.schedule_by == "epoch":
        state.schedule.step()
    figures = task.evaluate(state.network) if evaluated else {}
    before = [_score(line, task) for line in state.history]
    state.epoch += 1
    line = {"epoch": state.epoch, "lr": lr, "train_loss": state.loss / state.step}
    state.history.append({**line, **figures, "seconds": round(seconds, 3)})
    state.step, state.loss = 0, 0.0
    if is_main():
        save(state.network, state.spec, folder / "last.safetensors")
        if _score(figures, task) > max(before, default=-math.inf):
            save(state.network, state.spec, folder / "best.safetensors")
        text = "".join(json.dumps(line) + "\n" for line in state.history)
        write_atomically(folder / "metrics.jsonl", lambda name: Path(name).write_text(text))


def _score(figures: Mapping[str, Any], task: Task) -> float:
    value = figures.get(task.best)
    return -math.inf if value is None else value
