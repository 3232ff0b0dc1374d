"""Measured times of layers: the table that is kept on disk, and interpolation between its entries."""

import logging
import os
from bisect import bisect
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.deployment.record import MEMORY_FORMATS
from norton_det.errors import DataError, expect
from norton_det.files import read_json, write_json
from norton_det.json_text import is_number
from norton_det.runtime.timing import describe_machine
from norton_det.storage import is_file, make_folder

logger = logging.getLogger(__name__)
_LONGEST = 1e9  # milliseconds
_IMPLEMENTATIONS = 3  # a higher number for new implementations of layers: times from before them no longer hold
Times = dict[str, float]
"""Milliseconds in each memory format."""


class LatencyTable:
    """Times that were measured on this machine: JSON in the user's cache folder.

    Args:
        folder: where the file is; None: ``$XDG_CACHE_HOME/norton_det`` or ``~/.cache/norton_det``.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.machine = describe_machine()
        name = f"latency-{sha256(f'{self.machine}, implementations {_IMPLEMENTATIONS}'.encode()).hexdigest()[:12]}.json"
        self.path = Path(folder or cache / "norton_det") / name
        self.times: dict[str, Times] = {}
        if is_file(self.path):
            try:
                self.times = self._read()
            except DataError as error:
                logger.warning("%s; the times are measured anew", error)

    def _read(self) -> dict[str, Times]:
        times = read_json(self.path, dict, "times of layers").get("times")
        expect(isinstance(times, dict), f"{self.path}: times", times, "times by layer")
        for key, each in times.items():
            right = isinstance(each, dict) and each.keys() >= set(MEMORY_FORMATS) and all(map(_is_time, each.values()))
            expect(right, f"{self.path}: times of {key}", each, f"milliseconds of {', '.join(MEMORY_FORMATS)}")
        return dict(times)

    def save(self) -> None:
        """Write the file; without it the times are measured again the next time."""
        try:
            make_folder(self.path.parent)
            write_json(self.path, {"machine": self.machine, "times": self.times})
        except OSError as error:
            logger.warning("%s: %s; the times that were measured are not kept", self.path, error.strerror)


def _is_time(value: Any) -> bool:
    return is_number(value) and 0 < value < _LONGEST


class Grid:
    """Times of a layer at some widths and ranks; a rank is given by the weights that it has at full width."""

    def __init__(self, inputs: list[int], outputs: list[int], cells: Mapping[float | None, list[list[Times]]]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.values = {
            name: {rank: np.array([[cell[name] for cell in row] for row in rows]) for rank, rows in cells.items()}
            for name in MEMORY_FORMATS
        }

    def at(self, name: str, inputs: Any, outputs: Any, weights: float | None) -> Any:
        """Interpolate between the nearest widths and ranks; above the highest rank time grows on as up to there."""
        values = self.values[name]
        if weights is None or weights in values:
            return _bilinear(values[weights], self.inputs, self.outputs, inputs, outputs)
        measured = sorted(w for w in values if w is not None)
        last = min(max(bisect(measured, weights), 1), len(measured) - 1)
        low, high = measured[max(0, last - 1)], measured[last]
        fraction = max(0.0, (weights - low) / (high - low)) if high > low else 0.0
        both = (1 - fraction) * values[low] + fraction * values[high]
        return _bilinear(both, self.inputs, self.outputs, inputs, outputs)


def _bilinear(values: NDArray[np.float64], xs: list[int], ys: list[int], x: Any, y: Any) -> Any:
    (i, s), (j, t) = _place(xs, x), _place(ys, y)
    k, m = np.minimum(i + 1, len(xs) - 1), np.minimum(j + 1, len(ys) - 1)
    low = (1 - t) * values[i, j] + t * values[i, m]
    high = (1 - t) * values[k, j] + t * values[k, m]
    return (1 - s) * low + s * high


def _place(axis: list[int], value: Any) -> tuple[Any, Any]:
    """Return the grid point below, and the fraction of the way to the next; below the first point that is the first."""
    points = np.asarray(axis)
    i = np.clip(np.searchsorted(points, value, side="right") - 1, 0, max(0, len(points) - 2))
    step = points[np.minimum(i + 1, len(points) - 1)] - points[i]
    return i, np.clip((np.asarray(value) - points[i]) / np.maximum(step, 1), 0, 1)
