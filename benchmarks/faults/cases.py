"""Runs the cases of a campaign in a process that may die or hang, one after the other, and notes each outcome."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.campaign import Campaign, Outcome

_MOST_LETTERS = 5000  # of a note
_TO_PREPARE = 300  # seconds
_READY = "ready\n"


@dataclass(frozen=True)
class Noted:
    """A line of a file of outcomes."""

    index: int
    seed: int
    kind: str
    held: bool
    note: str
    seconds: float
    commit: str = "unknown"


def outcomes_in(path: Path) -> dict[int, Noted]:
    """Return the outcomes in a file by the number of the case; a last line that was not finished is left out."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {noted.index: noted for noted in (Noted(**json.loads(line)) for line in lines)}


def commit() -> str:
    """Return the commit of this checkout, with "-dirty" if files differ from it; "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    said = subprocess.run(command, capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else "unknown"


def run_cases(campaign: Campaign, seed: int, indices: Sequence[int], path: Path) -> Iterator[Noted]:
    """Run the cases that a file does not have yet, in order; yield each outcome once it is in the file.

    A case that ends its process, or takes longer than the campaign allows, is noted as such and the next goes on in
    another process.

    Args:
        campaign: whose cases.
        seed: of the campaign; with the number of a case it makes that case.
        indices: numbers of the cases.
        path: a line of JSON for each case.
    """
    done = outcomes_in(path)
    path.write_text("".join(json.dumps(vars(noted)) + "\n" for noted in done.values()))  # without an unfinished line
    left = [index for index in indices if index not in done or done[index].seed != seed]
    while left:
        with _Process(campaign, seed, [*left]) as process, path.open("a") as file:
            for noted in process.outcomes():
                file.write(json.dumps(vars(noted)) + "\n")
                file.flush()
                left.remove(noted.index)
                yield noted


class _Process:
    """A forked process that runs cases, with the pipe on which it tells of them."""

    def __init__(self, campaign: Campaign, seed: int, indices: Sequence[int]) -> None:
        self.campaign, self.seed, self.indices = campaign, seed, indices
        self.read, self.commit = b"", commit()

    def __enter__(self) -> "_Process":
        self.folder = Path(tempfile.mkdtemp(prefix=f"faults_{self.campaign.name}_"))
        self.pipe, write = os.pipe()
        sys.stdout.flush()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.pipe)
            os.setpgid(0, 0)  # what it starts is ended with it
            self._work(write)
        os.close(write)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        os.close(self.pipe)
        shutil.rmtree(self.folder, ignore_errors=True)

    def outcomes(self) -> Iterator[Noted]:
        """Yield the outcomes until the process ends, for whatever reason.

        Raises:
            RuntimeError: what the cases share could not be prepared.
        """
        if self._line(_TO_PREPARE) != _READY:
            raise RuntimeError(f"the campaign {self.campaign.name} cannot be prepared; its own error is above")
        for index in self.indices:
            start = time.monotonic()
            line = self._line(self.campaign.seconds)
            seconds = round(time.monotonic() - start, 3)
            if line:
                yield Noted(index, self.seed, *_read(line), seconds, self.commit)
                continue
            how = f"longer than {self.campaign.seconds:g} s" if line is None else f"process ended: {self._end()}"
            kind = "hang" if line is None else "crash"
            yield Noted(index, self.seed, kind, False, how, seconds, self.commit)
            return

    def _line(self, seconds: float) -> str | None:
        """Return the next line, "" if the process ended, None if there is none in this time."""
        end = time.monotonic() + seconds
        while b"\n" not in self.read:
            if not select.select([self.pipe], [], [], max(0, end - time.monotonic()))[0]:
                return None
            part = os.read(self.pipe, 2**16)
            if not part:
                return ""
            self.read += part
        line, _, self.read = self.read.partition(b"\n")
        return line.decode() + "\n"

    def _end(self) -> str:
        """End the process with all that it started; return how it ended."""
        if not self.child:
            return "ended"
        code = os.waitpid(self.child, os.WNOHANG)
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.child, signal.SIGKILL)
        status = code[1] if code[0] else os.waitpid(self.child, 0)[1]
        self.child = 0
        return f"exit code {os.waitstatus_to_exitcode(status)}"

    def _work(self, write: int) -> None:
        try:
            shared = self.folder / "shared"
            shared.mkdir()
            prepared = self.campaign.prepare(shared)
            os.write(write, _READY.encode())
            for index in self.indices:
                os.write(write, (json.dumps(self._outcome(prepared, index)) + "\n").encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _outcome(self, prepared: Any, index: int) -> Outcome:
        folder = self.folder / str(index)
        folder.mkdir()
        try:
            outcome = self.campaign.run(prepared, index, Random(f"{self.campaign.name} {self.seed} {index}"), folder)
        except Exception:
            outcome = Outcome("the case itself failed", False, traceback.format_exc()[-_MOST_LETTERS:])
        shutil.rmtree(folder, ignore_errors=True)
        return outcome._replace(note=outcome.note[:_MOST_LETTERS])


def _read(line: str) -> Outcome:
    return Outcome(*json.loads(line))
