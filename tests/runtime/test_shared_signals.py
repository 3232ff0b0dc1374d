"""A signal of one process is noted for the others whenever it comes, and a note is taken."""

import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from norton_det.runtime import signals
from norton_det.runtime.signals import Stop, _share


class Noted:
    """Stands for what the processes share."""

    def __init__(self, text: str | None = None, error: Exception | None = None) -> None:
        self.text, self.error, self.written = text, error, []  # type: ignore[var-annotated]

    def read(self) -> str | None:
        if self.error:
            raise self.error
        return self.text

    def write(self, text: str) -> None:
        self.written.append(text)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(signals, "_POLL", 0.01)
    reading, writing = socket.socketpair()
    with reading, writing:
        yield SimpleNamespace(reading=reading, writing=writing)


def test_a_signal_is_noted_also_if_it_came_before_the_thread_looks(pair: Any) -> None:
    stop, noted = Stop(), Noted()
    stop.receive(signal.SIGTERM, None)
    _share(stop, noted, pair.reading)  # type: ignore[arg-type]
    assert noted.written == ["15"]
    noted = Noted()
    pair.writing.send(bytes([signal.SIGCHLD, signal.SIGUSR1, 0]))
    _share(Stop(), noted, pair.reading)  # type: ignore[arg-type]
    assert noted.written == [str(int(signal.SIGUSR1))]


def test_nothing_is_noted_at_the_end_or_without_the_first_process(pair: Any) -> None:
    noted = Noted()
    pair.writing.send(bytes([0]))
    _share(Stop(), noted, pair.reading)  # type: ignore[arg-type]
    lost = Noted(error=RuntimeError("connection closed"))
    _share(Stop(), lost, pair.reading)  # type: ignore[arg-type]
    assert noted.written == lost.written == []


def test_a_note_wakes_up_a_process_that_sleeps(pair: Any) -> None:
    stop = Stop()
    before = signal.signal(signal.SIGUSR1, stop.receive)
    begin = time.monotonic()

    class WokenError(Exception):
        pass

    def receive(number: int, frame: object) -> None:
        raise WokenError

    signal.signal(signal.SIGUSR1, receive)
    noted = Noted(str(int(signal.SIGUSR1)))
    thread = threading.Thread(target=_share, args=(stop, noted, pair.reading))
    try:
        thread.start()
        with pytest.raises(WokenError):
            time.sleep(60)
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()
    assert time.monotonic() - begin < 30
