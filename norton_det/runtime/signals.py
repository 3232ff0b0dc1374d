"""Signals of the system: an orderly end after SIGTERM."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def catch_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received; within the block the signal has no other effect."""
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
