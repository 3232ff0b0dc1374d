"""Locks on files, which the system ends with the process that holds them, however it ends."""

import errno
import importlib
import os
import stat
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
    return _lock(handle, "flock") is not False


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Tell within the block whether no process holds a file or folder; none can come to hold it meanwhile.

    Without locks that is not known, and of a link or a device nobody here is the owner: False.

    Example:
        >>> import tempfile
        >>> from norton_det.file_locks import abandoned
        >>> with tempfile.TemporaryDirectory() as folder, abandoned(Path(folder)) as free:
        ...     free
        True
    """
    if os.name == "nt" or stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        yield False
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield _lock(handle, "flock") is True
    finally:
        os.close(handle)


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file for writing in a folder of ours, or make it; return its handle.

    Args:
        path: the file.
        flags: of ``os.open``.

    Raises:
        OSError: it is a link, which may lead to a file of somebody else, or no regular file, or cannot be opened.

    Example:
        >>> import tempfile
        >>> from norton_det.file_locks import open_own
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "log.txt").symlink_to("/etc/passwd")
        ...     open_own(f"{folder}/log.txt", os.O_WRONLY | os.O_APPEND)
        Traceback (most recent call last):
        OSError: [Errno 40] Too many levels of symbolic links: ...
    """
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | os.O_CREAT | more, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENXIO, "is no regular file", str(path))
    return handle


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
        handle = open_own(path, os.O_RDWR)
        try:
            if _lock(handle, "lockf") is False:
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


def _lock(handle: int, function: str) -> bool | None:
    """Lock with a function of ``fcntl``; False if the lock is taken, None where there are no locks."""
    if os.name == "nt":
        return None
    fcntl: Any = importlib.import_module("fcntl")  # not on Windows
    try:
        getattr(fcntl, function)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _write(handle: int, text: str, path: Path) -> None:
    try:
        os.truncate(handle, 0)
        os.write(handle, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
