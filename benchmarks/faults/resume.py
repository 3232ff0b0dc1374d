"""Trainings are stopped after each of their updates, and resumed."""

import os
import signal
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.trainings import GONE, SETTINGS, STEPS, Trainings
from norton_det.training import loop


def run(trainings: Trainings, index: int, random: Random, folder: Path) -> Outcome:
    """Stop a training after one of its updates, and compare its end with that of an undisturbed one."""
    number, step = divmod(index, STEPS)
    setting, out, rank = SETTINGS[number], folder / "out", random.randrange(SETTINGS[number].processes)
    running = trainings.start(
        setting, trainings.words(setting, out), folder / "0.log", lambda own: _stop_after(step) if own == rank else None
    )
    codes = running.wait(120 + GONE)
    if codes != [128 + signal.SIGTERM] * setting.processes:
        return Outcome(str(setting), False, f"ended with {codes}: {running.said()[-300:]}")
    if f"stopped at epoch {step // 4}, batch {step % 4 + 1};" not in running.said():
        return Outcome(str(setting), False, f"not after update {step}: {running.said()[-300:]}")
    found = trainings.resume(setting, out, folder / "end.log")
    return Outcome(str(setting), not found, found)


def _stop_after(step: int) -> None:
    """Send this process SIGTERM in its batch with a number, so that it ends with this batch's update."""
    reduce, count = loop._reduce, 0

    def stopping(terms: Any, stop: bool) -> Any:
        nonlocal count
        count += 1
        if count == step + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            stop = True  # as if it had come an instant earlier
        return reduce(terms, stop)

    loop._reduce = stopping


CAMPAIGN = Campaign(
    name="resume",
    title="Trainings stopped after each of 12 updates",
    promise="the resumed training ends as the undisturbed one, difference 0.",
    size=STEPS * len(SETTINGS),
    quick=1,
    seconds=400,
    prepare=Trainings,
    run=run,
)
