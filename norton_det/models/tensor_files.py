"""Files of tensors: reading without running any code, and the header and checksum of this package's files."""

import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from norton_det.errors import DataError, one_line
from norton_det.files import write_atomically
from norton_det.models.unpickling import load_plain
from norton_det.spec import check_version, version_of
from norton_det.storage import is_file

SPEC_KEY, DEPLOYMENT_KEY, SHA256_KEY = "norton_det.spec", "norton_det.deployment", "norton_det.sha256"
"""Keys of the header of a safetensors file."""
_DAMAGED = (SafetensorError, OSError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError)
"""What safetensors raises of files that it cannot read, or whose types torch does not have."""


def read_file(path: str | Path) -> Mapping[str, Any]:
    """Read a ``torch.save`` or safetensors file without running any code in it.

    Of a file of :func:`norton_det.save` the format version and the SHA-256 of the tensors are checked.

    Raises:
        DataError: the file is missing, damaged, of a newer format version, or holds something else than a mapping of
            plain values and tensors (see :func:`norton_det.models.unpickling.load_plain`).
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected weights")
    try:
        if path.suffix == ".safetensors":
            check_encoding(path)
            tensors = load_file(path)
            _check_tensors(path, tensors)
            return tensors
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged, or no weights file: {one_line(error)}") from None
    content = load_plain(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a state dict")
    return content


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header = read_header(path)
    if SPEC_KEY not in header:
        return  # of another program
    try:
        check_version(header[SPEC_KEY])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    expected, version = header.get(SHA256_KEY), version_of(header[SPEC_KEY])
    if expected is None and version < 1:
        return  # written before there was one
    actual = sha256_of(tensors, header if version >= 3 else {})
    if actual != expected:
        raise DataError(f"{path}: damaged: the SHA-256 of its content is {actual}; the header says {expected}")


def read_header(path: str | Path) -> Mapping[str, str]:
    """Return the texts in the header of a safetensors file; other files have none.

    Raises:
        DataError: the file is damaged, or no safetensors file.
    """
    if not is_safetensors(path):
        return {}
    check_encoding(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged, or no safetensors file: {one_line(error)}") from None


def write_file(path: str | Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file, atomically.

    Raises:
        DataError: its path is not UTF-8.
        UsageError: its folder does not exist.
        OSError: the storage is full or fails.
    """
    check_encoding(path)
    write_atomically(path, lambda name: _save(tensors, name, header))


def _save(tensors: dict[str, Tensor], name: str, header: dict[str, str]) -> None:
    """Write a file; raise the system's own error, whose number safetensors tells in its words alone."""
    try:
        save_file(tensors, name, header)
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), name) from None
        raise


def check_encoding(path: str | Path) -> None:
    """Check that safetensors can open a path, which must be UTF-8.

    Raises:
        DataError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: is not UTF-8; safetensors reads and writes no other paths") from None


def is_safetensors(path: str | Path) -> bool:
    """Return whether a path has the suffix of safetensors files."""
    return Path(path).suffix == ".safetensors"


def sha256_of(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    It is that of the texts in the header, which version 3 has, and of the tensors' names in order, types, shapes and
    bytes.
    """
    digest = sha256()
    for key, text in sorted((header or {}).items()):
        if key in (SPEC_KEY, DEPLOYMENT_KEY):
            digest.update(f"{key} {len(text)}\n{text}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
