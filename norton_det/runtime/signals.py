"""Signals that end a run in order: SIGTERM, SIGINT (Ctrl-C), and SIGUSR1, which schedulers send before a job's end."""

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from norton_det.errors import TerminatedError
from norton_det.runtime.distributed import Note, gather, world_size

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""The signals that there are on this system."""
_SAME = 1.0  # seconds within which a second SIGINT is the same Ctrl-C, from the terminal and from torchrun
_POLL = 1.0  # seconds between looks for a signal of another process
_END = b"\0"  # in place of a signal's number


@contextmanager
def end_at_signals() -> Iterator[None]:
    """Raise TerminatedError within the block where a signal comes, so that what was begun is cleaned up.

    Example:
        >>> import os, signal
        >>> from norton_det.errors import TerminatedError
        >>> from norton_det.runtime.signals import end_at_signals
        >>> with end_at_signals():
        ...     try:
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ...     except TerminatedError as error:
        ...         print(error, error.signal)
        SIGTERM received 15
    """
    with _handled(_end):
        yield


class Stop:
    """Whether a signal was received within the block of :func:`catch_signals`."""

    def __init__(self) -> None:
        self.signal = 0  # its number
        self.since = 0.0

    def __call__(self) -> bool:
        """Return whether this process received a signal, or learned of one that another received."""
        return bool(self.signal)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal; a second Ctrl-C ends at once."""
        now = time.monotonic()
        if self.signal == number == signal.SIGINT and now - self.since > _SAME:
            _end(number, frame)
        self.signal, self.since = number, now


_current: Stop | None = None
_blocks = 0  # of catch_signals, so far


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Keep the signals that come within the block, which have no other effect, but for a second Ctrl-C.

    A signal to one of several processes reaches all of them within a second or two, also those that wait for others. A
    block within another one is a part of that.

    Yields:
        A function that returns whether one came. What a run does in the block is stopped by :func:`stopping` and
        :func:`end_if_stopped`.

    Example:
        >>> import os, signal
        >>> from norton_det.runtime.signals import catch_signals
        >>> with catch_signals() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop()
        True
    """
    global _current
    if _current is not None:
        yield _current
        return
    _current = Stop()
    try:
        with _handled(_current.receive), _shared(_current):
            yield _current
    finally:
        _current = None


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let signals end work within :func:`catch_signals` that nothing is lost with; elsewhere they do so anyway."""
    if _current is None:
        yield
        return
    with _handled(_end):
        if _current():
            _end(_current.signal, None)
        yield


def stopping() -> bool:
    """Return whether a loop is to end: a signal was received, by this process or by another of the training."""
    return _current is not None and _current()


def end_if_stopped() -> None:
    """Raise TerminatedError in every process if a signal was received in one of them; all must call this."""
    if _current is not None and (number := max(gather(_current.signal))):
        _end(number, None)


def _end(number: int, frame: FrameType | None) -> None:
    raise TerminatedError(f"{signal.Signals(number).name} received", number)


@contextmanager
def _shared(stop: Stop) -> Iterator[None]:
    """Tell the other processes of a signal within the block, and this one of theirs.

    Python handles a signal when it goes on, which a process does not that waits for another one: a thread is told of
    the signal at once.
    """
    if world_size() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    global _blocks
    _blocks += 1  # as in the other processes
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=_share, args=(stop, Note(f"signal {_blocks}"), reading), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):  # so many signals that the thread needs no other reason to wake up
                writing.send(_END)  # closing it would not end the thread while processes that were forked have it open
            thread.join(_POLL)


def _share(stop: Stop, note: Note, received: socket.socket) -> None:
    """Note this process's signal for the others, or take the one that another process noted."""
    with suppress(OSError, ValueError, RuntimeError):  # the block is over, or the process that keeps the notes
        while not stop.signal:
            if select.select([received], [], [], _POLL)[0]:
                numbers = received.recv(64)
                if own := [number for number in numbers if number in SIGNALS]:
                    note.write(str(own[0]))
                    return
                if set(_END) & set(numbers):
                    return
            elif (text := note.read()) and received.fileno() >= 0:
                _send_to_main(int(text))
                return
        note.write(str(int(stop.signal)))  # it came between two looks


def _send_to_main(number: int) -> None:
    """Send a signal to the main thread, which also wakes it up where it sleeps."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals by a function within the block; those that are ignored (``nohup``, ``&``) still are."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: action for number, action in before.items() if action is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)
