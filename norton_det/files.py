"""Reading and writing files: atomic writes, and JSON."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from norton_det.errors import DataError, UsageError
from norton_det.file_locks import abandoned, hold
from norton_det.json_text import keys_once
from norton_det.storage import MARK, make_folder, naming, raise_full, unwritten

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case and alphabetical order."""


_swept: set[Path] = set()


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Write a file in a temporary folder beside it, then rename it: no reader ever sees half a file.

    The content is on the disk before it has its name, and the name is when this returns: a power failure leaves the old
    file or the new one. What processes that were killed left in the folder is removed (see :func:`remove_abandoned`),
    also the temporary files of a library that writes.

    Args:
        path: the file; an existing one is replaced when the new one is complete.
        write: called with the temporary path, of the same name; it does not exist yet.

    Raises:
        UsageError: the folder does not exist.
        OSError: the storage is full or fails, whatever ``write`` raised then; its file name is ``path``.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from norton_det.files import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/x.pt", lambda name: torch.save(torch.ones(2), name))
        ...     torch.load(f"{folder}/x.pt")
        tensor([1., 1.])
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: folder {path.parent} does not exist")
    if path.parent.resolve() not in _swept:  # once in a process
        remove_abandoned(path.parent)
    with naming(path), _temporary(path) as folder:
        temporary = folder / path.name
        try:
            write(str(temporary))
        except Exception:
            raise_full(temporary)
            raise
        temporary.chmod(0o666 & ~_umask())  # some libraries allow nobody else to read the file
        _put(temporary, path)


def remove_abandoned(folder: str | Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder; those in use are locked.

    Example:
        >>> import tempfile
        >>> from norton_det.files import remove_abandoned
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     half = Path(folder, ".x.pt.norton_det-abcdefgh.pt")
        ...     half.touch()
        ...     remove_abandoned(folder)
        ...     half.exists()
        False
    """
    for path in Path(folder).glob(f".*.{MARK}*"):
        with suppress(OSError), abandoned(path) as free:  # an error: another process has removed it just now
            if free:
                _remove(path)
    _swept.add(Path(folder).resolve())


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, atomically.

    Raises:
        UsageError: the folder does not exist.
    """
    write_atomically(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as JSON, atomically.

    Raises:
        UsageError: the folder does not exist.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def check_writable(folder: str | Path) -> None:
    """Check that files can be written in a folder, which costs less before long work than after it.

    Raises:
        OSError: they cannot; its file name is that of the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(folder)
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise unwritten(error, folder) from None


def check_name(path: str | Path) -> None:
    """Check that a file can have a name, which must not be that of a folder, nor too long under its temporary one.

    Raises:
        OSError: it cannot.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_name(f"{folder}/x.json")
    """
    path = Path(path)
    with naming(path), suppress(FileNotFoundError):
        path.with_name(f".{path.name}.{MARK}12345678").stat()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that is renamed to it at the end of the block.

    After an exception the temporary folder is removed: no reader ever sees a folder that lacks files.

    Raises:
        UsageError: ``path`` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: exists already; expected a new or empty folder")
    make_folder(path.parent)
    remove_abandoned(path.parent)
    with naming(path), _temporary(path) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp allows nobody else to read the folder
        _put(temporary, path)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading. A FIFO would make a reader wait, a device could have no end: they are refused.

    Raises:
        OSError: the file cannot be opened, or is no regular file.

    Example:
        >>> import os
        >>> from norton_det.files import open_regular
        >>> open_regular(os.curdir)
        Traceback (most recent call last):
        OSError: is no regular file
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("is no regular file")
    return os.fdopen(handle, "rb")


def read_json(path: str | Path, kind: type, expected: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        kind: the type of its outermost value: ``dict`` or ``list``.
        expected: what the file should be, for the messages ("COCO annotations").

    Raises:
        DataError: the file is missing, is no regular file, is not JSON, has an object with a key that comes twice, or
            an outermost value of another type.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(), object_pairs_hook=keys_once)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}; expected {expected}") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``, held until the end of the block, and removed then."""
    while True:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.{MARK}"))
        try:
            handle = os.open(os.devnull if os.name == "nt" else temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue  # just now, another process took it for an abandoned one
        if hold(handle) and temporary.exists():
            break
        os.close(handle)  # it is about to
        _remove(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _put(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its name, in an order that survives a power failure."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it cannot open folders
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this for folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
