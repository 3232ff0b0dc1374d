"""The log on a terminal and in the file of a run."""

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
from conftest import ENVIRONMENT

from norton_det.errors import TerminatedError
from norton_det.runtime import logs
from norton_det.runtime.logs import RunLog

SCRIPT = """
import logging, sys, warnings
from norton_det.runtime.logs import hide_warnings, show_log
from norton_det.runtime.progress import ProgressLog
show_log()
hide_warnings()
warnings.warn("of a library", FutureWarning)
logging.getLogger("library").info("of a library")
log = ProgressLog("Epoch: [0]", 2)
for i in log.follow(range(5)):
    log.update(loss=i)
"""


def lines_of(terminal: bool) -> list[str]:
    """Return what a process writes to stderr, as pieces that end with a line feed or a carriage return."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=ENVIRONMENT, stderr=theirs):
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the end of a terminal
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return shown.decode().replace("\r\n", "\n").splitlines(keepends=True)


@pytest.mark.slow
def test_a_file_has_the_lines_and_no_bar() -> None:
    lines = lines_of(terminal=False)
    assert [line.partition("  eta")[0].strip() for line in lines[:-1]] == [f"Epoch: [0]  [{i}/5]" for i in (0, 2, 4)]
    assert "Total time" in lines[-1]
    assert not [line for line in lines if "\r" in line or "of a library" in line]


def test_a_terminal_has_a_bar_that_no_line_runs_into() -> None:
    lines = lines_of(terminal=True)
    bars = [line for line in lines if "%|" in line]
    assert bars
    for line in lines:
        assert ("%|" in line) + ("  eta: " in line) <= 1, "a line is either of the log or of the bar"
    assert len([line for line in lines if "  eta: " in line]) == 3


def test_a_run_log_has_what_was_logged_before_it_had_a_file(tmp_path: Path) -> None:
    log = RunLog()
    for text in ("first", "second"):
        log.emit(logging.makeLogRecord({"msg": text}))
    log.open(tmp_path / "log.txt")
    log.note("third")
    log.close()
    log = RunLog()
    log.open(tmp_path / "log.txt")
    log.note("fourth")
    log.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["first", "second", "third", "fourth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_run_log_that_cannot_be_written_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "open_own", os.open)  # it refuses devices
    log = RunLog()
    log.note("first")
    log.open(Path("/dev/full"))
    log.note("second")
    log.close()
    assert capsys.readouterr().err == "/dev/full: No space left on device; the log goes on without this file\n"


def test_a_log_shows_no_control_codes(tmp_path: Path) -> None:
    log = RunLog()
    log.open(tmp_path / "log.txt")
    log.note("a\x1b[31mb\n\tc\r\ud800")
    log.close()
    assert (tmp_path / "log.txt").read_text().split("  ", 1)[1] == "a\\x1b[31mb\n\tc\\r\\ud800\n"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_log_is_no_link_and_no_pipe(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "log.txt", tmp_path / "other"
    other.write_text("of somebody else")
    {"link": lambda: path.symlink_to(other), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(OSError, match=r"symbolic links|is no regular file|No such device|Is a directory"):
        RunLog().open(path)
    assert other.read_text() == "of somebody else"


def test_a_signal_as_a_line_is_written_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(text: str, **options: Any) -> None:
        try:
            raise TerminatedError("SIGTERM received")
        finally:
            RLock().release()  # RuntimeError, as in tqdm

    monkeypatch.setattr(logs.tqdm, "write", interrupted)
    with pytest.raises(TerminatedError):
        logs._BesideBars(sys.stderr).emit(logging.makeLogRecord({"msg": "Start"}))
