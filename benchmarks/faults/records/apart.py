"""A case in a process of its own, forked when everything is imported."""

import atexit
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.campaign import Outcome


def run_apart(run: Callable[[], Outcome], folder: Path, streams: str, seconds: float) -> Outcome:
    """Return the outcome of a function that is called in a process of its own.

    Args:
        run: the function.
        folder: where the process keeps what it writes.
        streams: name of the file in it that is stdout and stderr of the process.
        seconds: when they are over, the process and those that it started are killed.
    """
    path, written = folder / "outcome.json", folder / streams
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(written, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream.fileno())
        _run_and_exit(run, path)
    code, left = _waited(child, seconds)
    text = written.read_text(errors="replace")
    if not path.exists():
        return Outcome("hang" if code == -signal.SIGKILL else "crash", False, f"exit code {code}\n{text[-3000:]}")
    outcome = Outcome(*json.loads(path.read_text()))
    wrong = "processes were left" if left else f"exit code {code}" if code else ""
    wrong = wrong or ("wrote a traceback" if "Traceback (most" in text else "")
    return outcome._replace(held=False, note=f"{outcome.note}\n{wrong}\n{text[-3000:]}") if wrong else outcome


def _run_and_exit(run: Callable[[], Outcome], path: Path) -> None:
    """Call the function, and end this process as Python does, but not as those do who forked it."""
    code = 1
    try:
        path.write_text(json.dumps(run()))
        atexit._run_exitfuncs()
        code = 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _waited(child: int, seconds: float) -> tuple[int, bool]:
    """Return the exit code of a process, and whether others of its group were left, which are killed."""
    end = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return os.waitstatus_to_exitcode(ended[1]), False
    return os.waitstatus_to_exitcode(ended[1]), True
