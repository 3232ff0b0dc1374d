"""Locks on files, which the system ends with the process that holds them, however it ends."""

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TAKEN = (errno.EACCES, errno.EAGAIN)


def hold(handle: int) -> bool:
    """Lock an open file or folder until it is closed; processes that are forked meanwhile hold it as well.

    Returns:
        False if another process holds it. True if it is held now, or if there are no locks (Windows, some networks).
    """
    return _lock(handle, "flock")


def is_held(path: Path) -> bool:
    """Tell whether a process holds a file or folder; without locks, always."""
    if os.name == "nt":
        return True
    handle = os.open(path, os.O_RDONLY)
    try:
        return not hold(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, text: str) -> Iterator[str | None]:
    """Hold a lock file within the block, unless another process does; it is removed at the end.

    The lock is that of this process alone, not of processes that it forks: it ends with this one.

    Args:
        path: the file; a process must not open it otherwise, for closing it ends the lock.
        text: its content, which tells others who holds it.

    Yields:
        None if the lock is held, else the content that its holder wrote.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle, "lockf"):
                yield os.read(handle, 1000).decode(errors="replace").strip() or "another process"
                return
            if not _is_still(path, handle):
                continue  # its last holder removed it after it was opened here
            try:
                _write(handle, text, path)
                yield None
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _lock(handle: int, function: str) -> bool:
    """Lock with a function of ``fcntl``; False if the lock is taken, True also where there are no locks."""
    if os.name == "nt":
        return True
    fcntl: Any = importlib.import_module("fcntl")  # not on Windows
    try:
        getattr(fcntl, function)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN  # a file system without locks
    return True


def _write(handle: int, text: str, path: Path) -> None:
    try:
        os.truncate(handle, 0)
        os.write(handle, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
