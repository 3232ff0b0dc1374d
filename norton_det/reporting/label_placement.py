"""Placement of names beside the markers of a figure, without overlaps.

Of the libraries for this, adjustText places names on lines and markers, and textalloc draws long lines across others.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels."""
_GAP = 3
"""Minimum distance of a name from markers and lines, in pixels."""
_NEAR = 12
"""Maximum distance of a name from its marker without a line between them, in pixels."""
_STEPS = 9
"""Number of points of such a line that are tested for overlaps."""


def write_names(axes: "Axes", points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a name near each point such that it overlaps no other name, marker or line.

    A name that is far from its marker gets a line to it. Call this last: everything else must have been drawn, and the
    axes must have their final positions (``figure.draw_without_rendering()``).

    Args:
        axes: the axes on which the names are written.
        points: (x, y, name, colour) of each name; x and y are data coordinates.
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
    """Yield small boxes that together cover the markers and lines."""
    for line in axes.lines:
        steps = 1 if line.get_linestyle() == "None" else 100
        marker = 0 if line.get_marker() == "None" else line.get_markersize() / 2
        for x, y in line.get_transform().transform(line.get_path().interpolated(steps).vertices):
            yield x - marker - _GAP, y - marker - _GAP, x + marker + _GAP, y + marker + _GAP


def _place(spot: Any, size: Any, taken: Any, bounds: Any) -> Box:
    """Return the free box that is nearest to ``spot``, or the nearest box if none is free.

    A box is free if it is within the bounds and neither the box nor a line from it to the marker overlaps others.

    Args:
        spot: position of the marker, (2,).
        size: width and height of the box, (2,).
        taken: the boxes that must not be overlapped, (N, 4).
        bounds: the limits, (4,).
    """
    others = taken[~_overlap(np.array([[*spot, *spot]]), taken)[0]]  # without the marker, at which the line begins

    def free(box: Box) -> bool:
        left, bottom, right, top = box
        inside = bounds[0] <= left and bounds[1] <= bottom and right <= bounds[2] and top <= bounds[3]
        line = np.linspace(spot, np.clip(spot, box[:2], box[2:]), _STEPS)
        return bool(
            inside
            and not _overlap(np.array([box]), taken).any()
            and not _overlap(np.concatenate([line, line], 1), others).any()
        )

    return next(filter(free, _around(spot, size)), next(_around(spot, size)))


def _overlap(boxes: Any, others: Any) -> Any:
    """Return which boxes share a point with which others, bool (len(boxes), len(others))."""
    apart = (boxes[:, None, :2] > others[:, 2:]) | (boxes[:, None, 2:] < others[:, :2])
    return ~apart.any(2)


def _around(spot: Any, size: Any) -> Iterator[Box]:
    """Yield boxes of one size around ``spot`` in order of distance, beginning at its right."""
    for distance in range(6, 200, 5):
        for turn in range(16):
            angle = 2 * math.pi * turn / 16
            x = spot[0] + distance * math.cos(angle) + size[0] * (math.cos(angle) - 1) / 2
            y = spot[1] + distance * math.sin(angle) + size[1] * (math.sin(angle) - 1) / 2
            yield x, y, x + size[0], y + size[1]
