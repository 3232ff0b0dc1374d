"""Names beside the markers of a picture, where they can be read.

Of the libraries for this, adjustText lets names lie on lines and markers, textalloc draws long lines across the others.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Pixels: left, bottom, right, top."""
_GAP = 3
"""Pixels between a name and what is drawn."""
_NEAR = 12
"""Pixels up to which a name needs no line to its marker."""
_STEPS = 9
"""Points of such a line that are looked at."""


def write_names(axes: "Axes", points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names where they cover neither each other nor a marker or line, with a line to the marker if it is far.

    The axes must be where they will stay (``figure.draw_without_rendering()``), and all else must be drawn.

    Args:
        axes: where to write.
        points: (x, y, name, colour), one for each name; x and y in the units of the data.
    """
    taken = list(_drawn(axes))
    to_data: Any = axes.transData.inverted().transform
    for x, y, name, color in points:
        text = axes.text(x, y, name, fontsize=8, color=color, verticalalignment="bottom")
        text.set_in_layout(False)
        spot = axes.transData.transform((x, y))
        box = _place(spot, text.get_window_extent().size, np.array(taken), axes.bbox.extents)
        taken.append(box)
        text.set_position(to_data(box[:2]))
        tip = np.clip(spot, box[:2], box[2:])
        if math.dist(spot, tip) > _NEAR:
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (x, y), to_data(tip), arrowprops=line).set_in_layout(False)
            taken += [(px, py, px, py) for px, py in np.linspace(spot, tip, _STEPS)]


def _drawn(axes: "Axes") -> Iterator[Box]:
    """Yield small boxes that cover the markers and lines."""
    for line in axes.lines:
        steps = 1 if line.get_linestyle() == "None" else 100
        marker = 0 if line.get_marker() == "None" else line.get_markersize() / 2
        for x, y in line.get_transform().transform(line.get_path().interpolated(steps).vertices):
            yield x - marker - _GAP, y - marker - _GAP, x + marker + _GAP, y + marker + _GAP


def _place(spot: Any, size: Any, taken: Any, bounds: Any) -> Box:
    """Return the nearest box around ``spot`` that is free and can be reached, or the nearest one where none is.

    Args:
        spot: where the marker is, (2,).
        size: width and height of the box, (2,).
        taken: boxes that neither the name nor a line from it to the marker must cover, (N, 4).
        bounds: the box in which to stay, (4,).
    """
    others = taken[~_overlap(np.array([[*spot, *spot]]), taken)[0]]  # without the marker, where the line starts

    def free(box: Box) -> bool:
        left, bottom, right, top = box
        inside = bounds[0] <= left and bounds[1] <= bottom and right <= bounds[2] and top <= bounds[3]
        way = np.linspace(spot, np.clip(spot, box[:2], box[2:]), _STEPS)
        return bool(
            inside
            and not _overlap(np.array([box]), taken).any()
            and not _overlap(np.concatenate([way, way], 1), others).any()
        )

    return next(filter(free, _around(spot, size)), next(_around(spot, size)))


def _overlap(boxes: Any, others: Any) -> Any:
    """Return (len(boxes), len(others)) bool: which of them share a point."""
    apart = (boxes[:, None, :2] > others[:, 2:]) | (boxes[:, None, 2:] < others[:, :2])
    return ~apart.any(2)


def _around(spot: Any, size: Any) -> Iterator[Box]:
    """Yield boxes of one size around ``spot``, the nearest first, to its right first."""
    for distance in range(6, 200, 5):
        for turn in range(16):
            angle = 2 * math.pi * turn / 16
            x = spot[0] + distance * math.cos(angle) + size[0] * (math.cos(angle) - 1) / 2
            y = spot[1] + distance * math.sin(angle) + size[1] * (math.sin(angle) - 1) / 2
            yield x, y, x + size[0], y + size[1]
