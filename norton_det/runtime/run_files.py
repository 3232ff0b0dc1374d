"""What the files of a run say: each value is checked before it is used, for files are edited, damaged and exchanged."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from norton_det.errors import DataError, expect
from norton_det.files import open_regular
from norton_det.json_text import is_number, json_object
from norton_det.runtime.run_folder import MOST_BYTES
from norton_det.storage import is_there
from norton_det.yaml_files import read_yaml

logger = logging.getLogger(__name__)

_MOST = 2**53  # epochs, operations, bytes
_MOST_LETTERS = 4096  # of a path


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    r"""Return the lines of ``metrics.jsonl``. A last line that is cut off is left out.

    Raises:
        DataError: the file is missing or cannot be read, or a value is no number; the message names the line.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_files import read_lines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"epoch": 0, "train_loss": 2.5}\n{"epoch": 1, "trai')
        ...     read_lines(path)
        [{'epoch': 0, 'train_loss': 2.5}]
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            texts = file.read().decode().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; expected the folder of a training") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; expected a JSON object in each line") from None
    if texts and not texts[-1].endswith(("}", "\n")):
        texts.pop()
    return [_line(text, f"{path}: line {number}") for number, text in enumerate(texts, start=1)]


def _line(text: str, where: str) -> dict[str, Any]:
    line = json_object(text, where)
    expect(_is_count(line.get("epoch")), f"{where}: epoch", line.get("epoch"), "a whole number of at least 0")
    iteration = line.get("iteration", 0)
    expect(_is_count(iteration), f"{where}: iteration", iteration, "a whole number of at least 0")
    for name, value in line.items():
        expect(value is None or _is_number(value), f"{where}: {name}", value, "a finite number, or null")
    return line


def set_damaged_aside(path: Path, error: DataError) -> None:
    """Rename a damaged file of a run that goes on without it, and say so.

    Args:
        path: the file.
        error: what is wrong with it.
    """
    aside = path.with_name(f"damaged_{path.name}")
    path.replace(aside)
    logger.warning("%s; renamed to %s, and written anew", error, aside.name)


def read_about(path: str | Path) -> dict[str, Any]:
    """Return the content of ``args.yaml``; nothing of a run of an earlier version, which has none.

    Raises:
        DataError: the file cannot be read, or a field is of another kind; the message names it.
    """
    path = Path(path)
    if not is_there(path):
        return {}
    about = read_yaml(path, "what a training wrote", most_bytes=MOST_BYTES)
    for field, checks in _ABOUT.items():
        _check(about.get(field), checks, f"{path}: {field}")
    return about


Check = tuple[Callable[[Any], bool], str]
"""Whether a value is right, and what is expected."""


def _check(value: Any, checks: "Check | dict[str, Any]", where: str) -> None:
    """Check a value, or those of a mapping by their names, "*" for all; one that is missing or None is right."""
    if value is None:
        return
    if not isinstance(checks, dict):
        right, expected = checks
        expect(right(value), where, value, expected)
        return
    expect(isinstance(value, Mapping), where, value, "values by name")
    each = dict.fromkeys(value, checks["*"]) if "*" in checks else checks
    for name, inner in each.items():
        _check(value.get(name), inner, f"{where}.{name}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
    return is_number(value) and (math.isfinite(value) if isinstance(value, float) else abs(value) <= _MOST)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_LETTERS


_TEXT: Check = (_is_text, f"a text of at most {_MOST_LETTERS} letters")
_COUNT: Check = (_is_count, "a whole number of at least 0")
_NUMBERS: Check = (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers")
_TEXTS: Check = (
    lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "a list of texts",
)
_ABOUT: dict[str, Any] = {
    "args": {
        "model": _TEXT,
        "max_detections": (lambda value: _is_count(value) and value > 0, "a whole number of at least 1"),
        "val_fraction": (lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1"),
        "split_seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        "keypoint_sigmas": _NUMBERS,
    },
    "data": {"*": {"images": _COUNT, "objects": _COUNT, "annotations": _TEXT, "folder": _TEXT, "sha256": _TEXT}},
    "cost": {"*": _COUNT},
    "classes": _TEXTS,
    "versions": {"*": _TEXT},
    **dict.fromkeys(("device", "git_commit", "started"), _TEXT),
    "resumed": (lambda value: isinstance(value, list), "a list"),
}
