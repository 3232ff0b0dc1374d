"""Training over all epochs, with evaluation and output files.

- ``checkpoint.pth``: the complete state. It is written before the evaluation of an epoch, and once more after it.
- ``last.safetensors`` and ``best.safetensors``: the network, or its moving average, after the last epoch and after the
  epoch with the best metric (top-1 accuracy of a classifier, AP of a detector).
- ``metrics.jsonl``: a line for each epoch with its number, its last learning rate, the mean training loss, the metrics
  of the evaluation, and the seconds of training since the epoch was begun or resumed.
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
from norton_det.files import write_text
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
    """Train from the current epoch of ``state`` to the last one; evaluate and write the files.

    Args:
        state: the state. It is updated in place.
        task: the task.
        options: options of the training loop.
        epochs: total number of epochs.
        folder: folder of the files; it must exist.
        args: command-line arguments; they are stored in the checkpoint.
        eval_every: number of epochs between evaluations; the last epoch is always evaluated.
        numbered: keep the checkpoint of each epoch as ``model_EPOCH.pth``.
        on_epoch: called after each epoch with its line of ``metrics.jsonl``.

    Raises:
        TerminatedError: SIGTERM was received. The checkpoint contains everything up to the last update.
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
                position = f"epoch {state.epoch + 1}, batch {state.step}"
                raise TerminatedError(f"stopped at {position}; resume with --resume {Path(folder) / 'checkpoint.pth'}")
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
    """Evaluate if it is due, advance the state to the next epoch, and write all files except the checkpoint."""
    lr = state.optimizer.param_groups[0]["lr"]
    if options.schedule_by == "epoch":
        state.schedule.step()
    metrics = task.evaluate(state.network) if evaluated else {}
    before = [_score(line, task) for line in state.history]
    state.epoch += 1
    line = {"epoch": state.epoch, "lr": lr, "train_loss": state.loss / state.step}
    state.history.append({**line, **metrics, "seconds": round(seconds, 3)})
    state.step, state.loss = 0, 0.0
    if is_main():
        save(state.network, state.spec, folder / "last.safetensors")
        if _score(metrics, task) > max(before, default=-math.inf):
            save(state.network, state.spec, folder / "best.safetensors")
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.history))


def _score(metrics: Mapping[str, Any], task: Task) -> float:
    value = metrics.get(task.best)
    return -math.inf if value is None else value
