"""Processes of trainings crash, hang, or are told to end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from torch.utils.data import get_worker_info

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.trainings import GONE, SETTINGS, STEPS, Running, Setting, Trainings, descendants, temporary_files
from norton_det.cli.common import EXIT_AGAIN, EXIT_DATA, EXIT_INTERRUPTED, EXIT_TERMINATED
from norton_det.data.coco.dataset import CocoDataset
from norton_det.data.loader import PATIENCE
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.training import loop

_CODES = {
    signal.SIGTERM: EXIT_TERMINATED,
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGUSR1: EXIT_AGAIN,
}
_HANGS = 8  # seconds
_EPOCHS = 3
_IMAGES = 8


def _fail() -> None:
    raise RuntimeError("a rank fails")


_CRASHES: dict[str, Callable[[], object]] = {
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "has a segmentation fault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "raises an error": _fail,
    "exits": lambda: os._exit(7),
}
_STOPS: dict[str, Callable[[], object]] = {
    "hangs": lambda: time.sleep(1000),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def run(trainings: Trainings, index: int, random: Random, folder: Path) -> Outcome:
    """Have one process crash, hang or end, and look at the others and at the end of the training."""
    case = (_is_signalled, _rank_crashes, _reader_crashes)[index % 3]
    return case(trainings, index // 3, random, folder)


def _rank_crashes(trainings: Trainings, number: int, random: Random, folder: Path) -> Outcome:
    setting, name = Setting(("cls", "det")[number % 2], 2), random.choice([*_CRASHES])
    bad, step = random.randrange(2), random.randrange(STEPS)

    def before(rank: int) -> None:
        if rank == bad:
            _at_batch(step, _CRASHES[name])

    running = trainings.start(setting, trainings.words(setting, folder / "out"), folder / "0.log", before)
    codes = running.wait(120)
    found = "" if codes and all(codes) else f"ended with {codes}: {running.said()[-300:]}"
    return _end(trainings, setting, f"a rank {name}", folder, found)


def _reader_crashes(trainings: Trainings, number: int, random: Random, folder: Path) -> Outcome:
    acts = {name: act for name, act in (_CRASHES | _STOPS).items() if act is not _fail}  # that one is told as it is
    name, act = random.choice([*acts.items()])
    setting, bad = Setting("det", (1, 1, 2)[number % 3]), random.randrange(_IMAGES)
    words = [*trainings.words(setting, folder / "out"), "-j", "2"]
    running = trainings.start(
        setting, words, folder / "0.log", lambda rank: _at_image(bad, act), **{PATIENCE: str(_HANGS)}
    )
    codes, said = running.wait(120), running.said()
    line = f"{bad + 1:012d}.png: the process that reads "
    named = [text for text in said.replace("\0", "").splitlines() if text.startswith("error: ") and line in text]
    found = (
        "" if codes and EXIT_DATA in codes and all(codes) and len(named) == 1 else f"ended with {codes}: {said[-300:]}"
    )
    return _end(trainings, setting, f"a process that reads {name}", folder, found)


def _is_signalled(trainings: Trainings, number: int, random: Random, folder: Path) -> Outcome:
    setting, sent = SETTINGS[number % len(SETTINGS)], random.choice([*_CODES])
    out, seconds = folder / "out", trainings.undisturbed(setting)[1]
    words = [*trainings.words(setting, out), "-j", str(random.choice([0, 2]))]
    slow = setting.task == "det" and random.random() < 0.5
    running = trainings.start(setting, words, folder / "0.log", lambda rank: _compute_slowly() if slow else None)
    _until_begun(out)
    time.sleep(random.uniform(0, seconds))
    whom = random.choice(["one rank", "all ranks", "the whole group"])
    if whom == "the whole group":
        for pid in descendants():
            os.kill(pid, sent)
    else:
        running.signal(sent, [random.randrange(setting.processes)] if whom == "one rank" else None)
    kind = f"{signal.Signals(sent).name} to {whom}" if setting.processes > 1 else signal.Signals(sent).name
    kind += ", with metrics that take long" if slow else ""
    found = _wrong_codes(trainings, setting, out, running, sent)
    if "Training time" in running.said():
        kind = "control: a signal when the training is over"
    return _end(trainings, setting, kind, folder, found)


def _wrong_codes(trainings: Trainings, setting: Setting, out: Path, running: Running, number: int) -> str:
    """Return what is wrong with the codes after a signal; a training that was finished by then ends as it would."""
    codes, said = running.wait(), running.said()
    expected = {_CODES[signal.Signals(number)]}
    if codes is not None and set(codes) == expected and "Traceback" not in said:
        return ""
    if codes is not None and "Training time" in said and set(codes) <= {0, *expected, -number}:
        return trainings.difference(setting, out)
    return f"ended with {codes}: {said[-400:]}"


def _until_begun(out: Path) -> None:
    end = time.monotonic() + 60
    while not out.exists() and time.monotonic() < end:
        time.sleep(0.01)


def _end(trainings: Trainings, setting: Setting, kind: str, folder: Path, found: str) -> Outcome:
    """Look at what is left of a training, and at its end once it is resumed."""
    if not found and (left := trainings.left()):
        found = f"processes are left after {GONE:g} s: {left}"
    out = folder / "out"
    found = found or trainings.resume(setting, out, folder / "end.log")
    if not found and (still := temporary_files(out)):
        found = f"temporary files are left: {still}"
    return Outcome(kind, not found, found)


def _at_batch(step: int, act: Callable[[], object]) -> None:
    """Do something in a batch of the training."""
    reduce, count = loop._reduce, 0

    def acting(terms: Any, stop: bool) -> Any:
        nonlocal count
        count += 1
        if count == step + 1:
            act()
        return reduce(terms, stop)

    loop._reduce = acting


def _compute_slowly() -> None:
    """Let COCO's metrics take longer than a training has time to end."""
    evaluate = CocoEvaluator.evaluate

    def slowly(self: CocoEvaluator, results: Any) -> Any:
        for _ in range(int(20 * GONE)):
            time.sleep(0.1)
        return evaluate(self, results)

    CocoEvaluator.evaluate = slowly  # type: ignore[method-assign,assignment]


def _at_image(number: int, act: Callable[[], object]) -> None:
    """Do something in the process that reads an image."""
    read = CocoDataset.__getitem__

    def acting(self: CocoDataset, index: int) -> Any:
        if self.train and index == number and get_worker_info() is not None:
            act()
        return read(self, index)

    CocoDataset.__getitem__ = acting  # type: ignore[method-assign]


CAMPAIGN = Campaign(
    name="processes",
    title="Ranks and readers that crash or hang, and signals",
    promise=f"all processes are gone within {GONE:g} s, a reader's file is named, the exit codes are 143, 130 and 75 "
    "after SIGTERM, SIGINT and SIGUSR1, and the resumed training ends as an undisturbed one.",
    size=90,
    quick=1,
    seconds=500,
    prepare=Trainings,
    run=run,
)
