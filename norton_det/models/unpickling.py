"""Files of ``torch.save``, read without running any code in them."""

import io
import pathlib
import pickle
import re
import types
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch

from norton_det.errors import DataError, shown

_REFUSED = re.compile(r"GLOBAL (?P<name>\S+)|(?P<archive>TorchScript archive)|but got <class '(?P<type>\S+)'>")
_NEWEST_PROTOCOL = 3  # of pickle, that torch reads without running code
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x1f\x7f]")


class _Fields(dict[str, Any]):
    """What a namespace holds, as a mapping."""

    __setstate__ = dict.update


def _mapping(*_: object) -> dict[Any, Any]:
    return {}


def _list(*_: object) -> list[Any]:
    return []


_NUMBERS = [np.bool_, *(np.dtype(code).type for code in "bhilqBHILQefdgFDG")]
_PATHS = {  # as pure ones: those of Windows cannot be made elsewhere
    **dict.fromkeys(("PosixPath", "PurePosixPath"), pathlib.PurePosixPath),
    **dict.fromkeys(("WindowsPath", "PureWindowsPath"), pathlib.PureWindowsPath),
}
HARMLESS: dict[str, Any] = {
    **{f"{kind.__module__}.{kind.__qualname__}": _Fields for kind in (Namespace, types.SimpleNamespace)},
    "collections.defaultdict": _mapping,
    "collections.deque": _list,
    **{f"builtins.{kind.__name__}": kind for kind in (list, dict, tuple, int, float, str, bool, frozenset)},
    **{f"{module}.{name}": kind for module in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()},
    "torch.torch_version.TorchVersion": str,
    # By both names of their module, of numpy 1 and 2.
    **{f"numpy.{core}.multiarray.scalar": np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": np.zeros(0).__reduce__()[0] for core in ("core", "_core")},
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    **{f"numpy.dtypes.{type(np.dtype(kind)).__name__}": type(np.dtype(kind)) for kind in _NUMBERS},
}
"""What training programs store beside tensors, by the names in their files, and what it becomes: values, never code."""


def load_plain(path: str | Path) -> Any:
    """Return the content of a file of ``torch.save``: tensors on the CPU, and plain values.

    Besides what ``torch.load(..., weights_only=True)`` reads, these are numpy's numbers and arrays, the arguments of
    ``argparse`` (as a mapping), paths and default dictionaries.

    Raises:
        DataError: the file is damaged, needs more memory than there is, is of a newer pickle protocol, or holds
            something else; the message names it.

    Example:
        >>> import argparse, tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"args": argparse.Namespace(lr=0.1), "epoch": 3}, f"{folder}/x.pth")
        ...     load_plain(f"{folder}/x.pth")
        {'args': {'lr': 0.1}, 'epoch': 3}
    """
    try:
        _check_records(path)
        with _harmless_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: damaged, or too large for the memory: {_plain(str(error)) or 'no memory'}") from None
    except Exception as error:  # bytes that are no such file fail anywhere
        raise DataError(f"{path}: {_fault(path, error)}") from None


def _check_records(path: str | Path) -> None:
    """Check the checksums of a file of ``torch.save``, which torch does not read.

    Raises:
        DataError: one is wrong.
    """
    if not is_zipfile(path):
        return  # of torch before 1.6, without checksums
    with ZipFile(path) as archive:
        if packed := [record.filename for record in archive.infolist() if record.compress_size < record.file_size]:
            name = shown(packed[0].partition("/")[2])
            raise DataError(f"{path}: {name} is compressed; expected a file of torch.save, which never is")
        has_checksums = any(record.CRC for record in archive.infolist())  # torch can be told to write none
        if has_checksums and (damaged := archive.testzip()):
            name = shown(damaged.partition("/")[2])[1:-1]
            raise DataError(f"{path}: damaged: {name} has another checksum than when it was written")


def _fault(path: str | Path, error: Exception) -> str:
    """Return what is wrong with a file that torch refused with ``error``."""
    text = str(error)
    if refused := _REFUSED.search(text):
        name = _plain(next(filter(None, refused.groups())))
        return f"holds a {name}, which is not among what is read; expected tensors and plain values, as in a state dict"
    if "Unsupported operand" in text and (protocol := _protocol(path)) > _NEWEST_PROTOCOL:
        return (
            f"written with pickle protocol {protocol}, which cannot be read without running code; "
            "save it again with torch.save's default"
        )
    return f"damaged, or no weights file: {_plain(text) or type(error).__name__}"


def _protocol(path: str | Path) -> int:
    """Return the pickle protocol of a file of ``torch.save``; 0 if it does not say it."""
    with suppress(OSError, RuntimeError, BadZipFile), ExitStack() as stack:
        file: Any = stack.enter_context(Path(path).open("rb"))
        if is_zipfile(file):
            archive = stack.enter_context(ZipFile(file))
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            file = stack.enter_context(archive.open(name)) if name else io.BytesIO()
        else:
            file.seek(0)
        start = file.read(2)
        return start[1] if len(start) == 2 and start[:1] == pickle.PROTO else 0
    return 0


@contextmanager
def _harmless_allowed() -> Iterator[None]:
    with torch.serialization.safe_globals([(value, name) for name, value in HARMLESS.items()]), catch_warnings():
        filterwarnings("ignore", ".*TorchScript archive", UserWarning)  # it is refused
        filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what cannot be read is refused as well
        yield


def _plain(text: str) -> str:
    """Return the first sentence of a message, without torch's advice around it and without escape codes."""
    _, _, told = text.rpartition("WeightsUnpickler error: ")
    first = next(filter(str.strip, told.splitlines()), "").partition(". ")[0]
    plain = _ESCAPES.sub("", first).strip()
    return "" if "weights_only" in plain else plain
