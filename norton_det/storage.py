"""Storage that is full or fails: errors with the name of the file, and checks before long work."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "norton_det-"
"""In temporary names, so that no other file is taken for an abandoned one."""
_PROBE = 2**20


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an OSError of the block that names no file, or a temporary one, the name of the file that is written.

    Example:
        >>> from norton_det.storage import naming
        >>> with naming("metrics.jsonl"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'metrics.jsonl'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and MARK not in os.fsdecode(error.filename)):
            raise
        raise unwritten(error, path) from None


def unwritten(error: OSError, path: str | Path) -> OSError:
    """Return the error of a file or folder that cannot be made, with its name.

    A place that is no storage, such as /proc, says that there is no such file: it gives no permission.

    Example:
        >>> from norton_det.storage import unwritten
        >>> unwritten(FileNotFoundError(2, "No such file or directory"), "/proc/x")
        PermissionError(13, 'No such file or directory')
    """
    return OSError(errno.EACCES if error.errno == errno.ENOENT else error.errno, error.strerror, str(path))


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it exists; return its path.

    Raises:
        OSError: it cannot be made; its file name is that of the folder.

    Example:
        >>> import tempfile
        >>> from norton_det.storage import make_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_folder(f"{folder}/a/b").is_dir()
        True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(error, path) from None
    return path


def check_space(folder: str | Path, size: int, what: str) -> None:
    """Check that a file has room in a folder, which costs less before long work than after it.

    Args:
        folder: where it is to be written.
        size: its bytes, at least.
        what: it is, for the message.

    Raises:
        OSError: there is no room; its file name is that of the folder.

    Example:
        >>> import tempfile
        >>> from norton_det.storage import check_space
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_space(folder, 1, "a checkpoint")
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        text = f"{os.strerror(errno.ENOSPC)} ({what} has at least {size:,} bytes, {free:,} are free)"
        raise OSError(errno.ENOSPC, text, str(folder))


def raise_full(path: Path) -> None:
    """Raise the system's own error if nothing can be added to a file; torch and safetensors raise others for it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from norton_det.storage import raise_full
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     raise_full(Path(folder, "half"))
    """
    with path.open("ab") as file:
        file.write(bytes(_PROBE))
        file.flush()
        os.fsync(file.fileno())


def is_file(path: str | Path) -> bool:
    """Tell whether a path names a file; not one that the system refuses to look at, such as a name that is too long.

    Example:
        >>> from norton_det.storage import is_file
        >>> is_file("x" * 5000)
        False
    """
    return os.path.isfile(path)  # noqa: PTH113  Path's method raises an error then


def is_folder(path: str | Path) -> bool:
    """Tell whether a path names a folder, likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: str | Path) -> bool:
    """Tell whether a path names anything, likewise."""
    return os.path.exists(path)  # noqa: PTH110
