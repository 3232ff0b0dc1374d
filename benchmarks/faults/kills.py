"""Trainings are killed at random times and at every file event, and resumed."""

import os
import signal
import time
from pathlib import Path
from random import Random

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.file_events import FileEvents
from benchmarks.faults.trainings import Setting, Trainings, temporary_files

AT_RANDOM = 300
EVENTS = {
    Setting("cls", 1): 180,
    Setting("cls", 2): 180,
    Setting("det", 1, epochs=1): 110,
    Setting("det", 2, epochs=1): 110,
}
"""Cases for the file events of each training; the last of them is to be past its last event."""
_AT_RANDOM = {
    Setting("cls", 1): 4,
    Setting("cls", 2): 3,
    Setting("det", 1, epochs=2): 2,
    Setting("det", 2, epochs=2): 1,
}
_AT_EVENTS = [(setting, event) for setting, count in EVENTS.items() for event in range(count)]


def run(trainings: Trainings, index: int, random: Random, folder: Path) -> Outcome:
    """Kill one training, and look at what is left and at its end."""
    if index < AT_RANDOM:
        (setting,) = random.choices([*_AT_RANDOM], [*_AT_RANDOM.values()])
        return _killed_at_random(trainings, setting, random, folder)
    return _killed_at_event(trainings, *_AT_EVENTS[index - AT_RANDOM], folder)


def _killed_at_random(trainings: Trainings, setting: Setting, random: Random, folder: Path) -> Outcome:
    out, seconds = folder / "out", trainings.undisturbed(setting)[1]
    kinds = {"all": None, **({"one": [random.randrange(setting.processes)]} if setting.processes > 1 else {})}
    which = random.choice([*kinds])
    kind = f"{setting}: " + ("killed" if setting.processes == 1 else f"{which} killed")
    for attempt in range(random.choice([1, 1, 1, 2])):
        words = [*trainings.words(setting, out), *(["--resume", str(out)] if out.exists() else [])]
        running = trainings.start(setting, words, folder / f"{attempt}.log")
        if which == "one":
            _until_joined(out)
        time.sleep(random.uniform(0, seconds))
        running.signal(signal.SIGKILL, kinds[which])
        if running.wait() is None:
            return Outcome(kind, False, f"a process waits for one that was killed: {running.said()[-300:]}")
    return _end(trainings, setting, kind, folder)


def _until_joined(out: Path) -> None:
    """Wait until the processes have met; before, torchrun alone could tell that one of them will not come."""
    end = time.monotonic() + 60
    while not out.exists() and time.monotonic() < end:
        time.sleep(0.01)


def _killed_at_event(trainings: Trainings, setting: Setting, event: int, folder: Path) -> Outcome:
    out, kind = folder / "out", f"{setting}: killed at a file event"
    events = FileEvents(out, event, lambda name: os.kill(os.getpid(), signal.SIGKILL))
    running = trainings.start(
        setting, trainings.words(setting, out), folder / "0.log", lambda rank: None if rank else events.install()
    )
    codes = running.wait(120)
    if codes is None:
        return Outcome(kind, False, f"a process waits for one that was killed: {running.said()[-300:]}")
    if codes[0] == 0:
        found = trainings.difference(setting, out)
        return Outcome(f"{setting}: control: past its last file event", not found, found)
    if event == EVENTS[setting] - 1 or codes[0] != -signal.SIGKILL:
        return Outcome(kind, False, f"event {event} of at most {EVENTS[setting]}: ended with {codes}")
    return _end(trainings, setting, kind, folder)


def _end(trainings: Trainings, setting: Setting, kind: str, folder: Path) -> Outcome:
    half = temporary_files(folder / "out")
    found = trainings.resume(setting, folder / "out", folder / "end.log")
    if not found and (still := temporary_files(folder / "out")):
        found = f"temporary files are left: {still}"
    if not found and (left := trainings.left()):
        found = f"processes are left: {left}"
    return Outcome(kind, not found, found or f"{len(half)} temporary files after the kill")


CAMPAIGN = Campaign(
    name="kills",
    title="Trainings killed at random times and at every file event",
    promise="the folder can be resumed, the end is that of an undisturbed training to the bit, and no temporary file "
    "and no process is left.",
    size=AT_RANDOM + len(_AT_EVENTS),
    quick=1,
    seconds=400,
    prepare=Trainings,
    run=run,
)
