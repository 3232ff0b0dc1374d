"""Checks of single fields of COCO's format, with the same rules for annotations and results.

The functions ``*_fault`` return a description of the error, or None.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.errors import shown

_MAX_COORDINATE = 1e6  # in pixels; pycocotools visits every pixel on the edges of a polygon
_MAX_ID = 2**63 - 1  # numpy and torch have integers of 64 bits
_MAX_PIXELS = 2**32 - 1  # pycocotools has run lengths of 32 bits
_MAX_EDGES = 4 * _MAX_COORDINATE
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, surrogates, separators of lines


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    numbers = (int, float, np.integer, np.floating)
    if not isinstance(value, numbers) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def is_text(value: object) -> bool:
    r"""Return whether a value is a text that can be printed, written to any file, and is one line.

    Example:
        >>> from norton_det.data.coco.checks.fields import is_text
        >>> is_text("Größe 😀"), is_text("a\0"), is_text("\ud800"), is_text(7)
        (True, False, False, False)
    """
    if not isinstance(value, str):
        return False
    plain = value.isascii() and value.isprintable()
    return plain or not any(unicodedata.category(letter) in _NO_TEXT for letter in value)


def is_id(value: object) -> bool:
    """Return whether a value can be an id: an integer of 64 bits, or a text."""
    if isinstance(value, str):
        return is_text(value)
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and abs(int(value)) <= _MAX_ID


def is_size(value: object) -> bool:
    """Return whether a value can be the width or height of an image."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_COORDINATE


def is_area(value: object) -> bool:
    """Return whether a value can be an area in square pixels."""
    return is_number(value) and 0 <= value <= _MAX_COORDINATE**2  # type: ignore[operator]


def are_numbers(values: object, count: int | None = None) -> bool:
    """Return whether a value is a list of ``count`` finite numbers; of any length if ``count`` is None."""
    return isinstance(values, Sequence) and (count is None or len(values) == count) and all(map(is_number, values))


def are_sigmas(values: object, count: int) -> bool:
    """Return whether a value has a tolerance for each of ``count`` keypoints (``keypoint_sigmas`` of a category)."""
    return are_numbers(values, count) and min(values) > 0  # type: ignore[call-overload]


def are_coordinates(values: object, count: int | None = None) -> bool:
    """Return whether a value is a list of ``count`` finite numbers of at most 1e6 pixels; of any length for None."""
    return are_numbers(values, count) and max(map(abs, values), default=0) <= _MAX_COORDINATE  # type: ignore[call-overload]


def outside(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    """Return whether a box x, y, width, height exceeds its image by more than one pixel, as some of COCO's do."""
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def box_fault(box: object) -> str | None:
    """Return the error of a box x, y, width, height in pixels."""
    if not are_numbers(box, 4):
        return f"bbox {shown(box)}; expected four finite numbers x, y, width, height"
    if box[2] < 0 or box[3] < 0:  # type: ignore[index]
        return f"bbox {shown(box)} has a negative size; expected x, y, width, height"
    return None


def keypoints_fault(points: object, count: int) -> str | None:
    """Return the error of the flat keypoints x, y, visibility of an object with ``count`` keypoints."""
    if not isinstance(points, Sequence) or len(points) != 3 * count:
        value = f"{len(points)} numbers" if isinstance(points, Sequence) else shown(points)
        return f"keypoints: {value}; expected {3 * count}, three for each of {count}"
    if not are_coordinates(points):
        return "keypoints: a value is not a finite number of at most 1e6"
    return None


def mask_fault(mask: Any, height: int, width: int) -> str | None:
    """Return the error of a segmentation (polygons or run-length code) of an image of this size in pixels.

    pycocotools does not check segmentations: run lengths that do not add up, also because they are no integers, and a
    NaN in a polygon make it hang, long edges fill the memory, and a mask of another size overlaps nothing.
    """
    if height * width > _MAX_PIXELS:
        return f"segmentation of an image of {width} x {height} pixels; expected at most {_MAX_PIXELS}"
    if isinstance(mask, list):
        return _polygons_fault(mask)
    if not isinstance(mask, dict) or "counts" not in mask or "size" not in mask:
        return f"segmentation is a {type(mask).__name__}; expected polygons, or counts and size"
    integers = are_numbers(mask["size"], 2) and all(isinstance(side, (int, np.integer)) for side in mask["size"])
    if not integers or list(mask["size"]) != [height, width]:
        return f"segmentation of size {shown(mask['size'])}; the image has [{height}, {width}] (height, width)"
    runs = mask["counts"]
    if isinstance(runs, (str, bytes)):
        runs = _decode(runs.encode("utf-8", "surrogatepass") if isinstance(runs, str) else runs)
    elif isinstance(runs, list) and are_numbers(runs):
        runs = np.array(runs)
    else:
        runs = None
    if runs is None or (runs < 0).any() or (runs % 1 != 0).any():
        return "segmentation with damaged counts"
    if runs.sum() != height * width:
        return f"segmentation whose counts add up to {runs.sum()}; expected {height * width}, {height} x {width}"
    return None


def _polygons_fault(polygons: list[Any]) -> str | None:
    """Return the error of polygons, each x, y, x, y, ... in pixels."""
    if not polygons:
        return "segmentation is empty; expected a polygon"
    for polygon in polygons:
        if not are_numbers(polygon):
            return "polygon with a value that is not a finite number"
        if not isinstance(polygon, (list, tuple)):
            return f"polygon is a {type(polygon).__name__}; expected a list of numbers"
        if len(polygon) % 2 or len(polygon) < 6:
            return f"polygon of {len(polygon)} numbers; expected x, y of three points or more"
        if max(map(abs, polygon)) > _MAX_COORDINATE:
            return f"polygon with a coordinate of {max(map(abs, polygon)):g} pixels; expected at most 1e6"
    if (length := sum(map(_edges, polygons))) > _MAX_EDGES:
        return f"polygons with edges of {length:g} pixels; expected at most {_MAX_EDGES:g}"
    return None


def _edges(polygon: Sequence[float]) -> float:
    """Return about how many pixels the edges of a polygon have, which pycocotools visits one by one."""
    points = np.array(polygon, dtype=float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())


def _decode(code: bytes) -> NDArray[np.int64] | None:
    """Return the run lengths of a compressed code, or None if the code is damaged.

    The code consists of integers in groups of 5 bits, lowest first; 48 is added to each group. Bit 5 of a group is set
    if another group follows, and bit 4 of the last group is the sign. From the fourth integer on, an integer is the
    difference from the run length two positions before.
    """
    groups = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    last = np.flatnonzero(groups & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if lengths.max() > 7:
        return None
    digits = np.arange(len(groups)) - np.repeat(first, lengths)  # position of each group in its integer
    runs = np.add.reduceat((groups & 31) << 5 * digits, first)
    runs -= np.where(groups[last] & 16, 1 << 5 * lengths, 0)
    for start in (1, 2):
        runs[start::2] = runs[start::2].cumsum()
    return runs
