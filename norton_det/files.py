"""Files: written whole or not at all, and JSON."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from norton_det.errors import DataError, UsageError


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name in the folder of ``path``, then rename: a reader never sees half a file.

    Raises:
        UsageError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: folder {path.parent} does not exist")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(temporary)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as JSON, atomically."""
    write_atomically(path, lambda name: Path(name).write_text(json.dumps(content, indent=1) + "\n"))


def read_json(path: str | Path, kind: type, expected: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        kind: of its outermost value, dict or list.
        expected: what the file should be, for messages.

    Raises:
        DataError: the file is missing, no JSON, or holds another kind of value.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; expected {expected}") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
