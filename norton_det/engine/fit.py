"""Training of a classifier from the first epoch to the last, with its files.

- ``checkpoint.pth``: all to go on from. It is written last, so that a run that dies before does the epoch again and
  writes the same.
- ``last.safetensors`` and ``best.safetensors``: the network, or its moving average, after the last epoch and after the
  one with the best top-1.
- ``metrics.jsonl``: a line an epoch with its number, the learning rate at its end, the mean training loss, top-1 and
  top-5 in percent, and the seconds of training since the epoch began or was resumed.
"""

import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.checkpoint import save, write_atomically
from norton_det.engine.classify import ClassifyOptions, SizedBatches, evaluate, train_one_epoch
from norton_det.engine.distributed import any_process, data_parallel, is_main
from norton_det.engine.state import TrainingState
from norton_det.engine.termination import catch_sigterm
from norton_det.errors import TerminatedError

logger = logging.getLogger(__name__)


def fit(
    state: TrainingState,
    training: Callable[[int, int], SizedBatches],
    evaluation: Callable[[], SizedBatches],
    device: torch.device,
    options: ClassifyOptions,
    *,
    epochs: int,
    folder: str | Path,
    args: Mapping[str, Any],
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Train up to ``epochs`` epochs in all, from wherever ``state`` is; evaluate and write the files after each.

    Args:
        state: what is trained.
        training: (epoch, first batch) -> the rest of the epoch's batches.
        evaluation: returns the batches to evaluate on.
        device: where the model is.
        options: how it is trained.
        epochs: number of epochs in all.
        folder: where the files go.
        args: the command line, kept in the checkpoint.
        on_epoch: called with the epoch's line of ``metrics.jsonl``.

    Raises:
        TerminatedError: SIGTERM came; the checkpoint holds what was done up to the last batch.
        NonFiniteLossError: the loss is infinite or NaN.
    """
    begin = time.monotonic()
    model = data_parallel(state.model, device)
    with catch_sigterm() as terminated:
        while state.epoch + 1 < epochs:
            start = time.monotonic()
            batches = training(state.epoch + 1, state.step)
            complete = train_one_epoch(model, state, batches, device, options, terminated)
            if complete:
                _finish_epoch(state, evaluation(), device, options, Path(folder), time.monotonic() - start)
            if is_main():
                state.save(folder, args, numbered=False)
                if complete and on_epoch is not None:
                    on_epoch(state.history[-1])
            if any_process(terminated(), device) and state.epoch + 1 < epochs:
                place = f"epoch {state.epoch + 1}, batch {state.step}"
                raise TerminatedError(f"stopped at {place}; go on with --resume {Path(folder) / 'checkpoint.pth'}")
    logger.info("Training time %s", datetime.timedelta(seconds=int(time.monotonic() - begin)))


def _finish_epoch(
    state: TrainingState,
    batches: SizedBatches,
    device: torch.device,
    options: ClassifyOptions,
    folder: Path,
    seconds: float,
) -> None:
    """Evaluate, move on to the next epoch and write all files but the checkpoint."""
    network: nn.Module = state.model if state.ema is None else state.ema.module
    lr = state.optimizer.param_groups[0]["lr"]
    if options.schedule_by == "epoch":
        state.schedule.step()
    result = evaluate(network, batches, device, amp=options.amp)
    best = max((line["top1"] for line in state.history), default=-math.inf)
    state.epoch += 1
    line = {"epoch": state.epoch, "lr": lr, "train_loss": state.loss / state.step}
    line |= {"top1": result.top1, "top5": result.top5, "seconds": round(seconds, 3)}
    state.history.append(line)
    state.step, state.loss = 0, 0.0
    logger.info("Epoch: [%d] Acc@1 %.3f Acc@5 %.3f of %d", state.epoch, result.top1, result.top5, result.images)
    if is_main():
        save(network, state.spec, folder / "last.safetensors")
        if result.top1 > best:
            save(network, state.spec, folder / "best.safetensors")
        text = "".join(json.dumps(line) + "\n" for line in state.history)
        write_atomically(folder / "metrics.jsonl", lambda name: Path(name).write_text(text))
