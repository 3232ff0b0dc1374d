"""An orderly end when the system asks for it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def catch_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM has come; until the end of the block it does nothing else."""
    came: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)
