"""Figures of a run: files for a viewer, and drawings within a page that take its colours."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from norton_det.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b7dd8", "#e07b39", "#3fa66b", "#b65fcf", "#c9a227", "#d1495b", "#4bb3c8", "#8a8f98")
"""Colours that can be seen on white and on black."""
MISSED = "#d1495b"
_LINK = "http://www.w3.org/1999/xlink"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches; matplotlib's global state is not used."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    r"""Return a name such that matplotlib shows it as it is, as a label, a tick or a title.

    A dollar sign begins no formula, and a label with an underscore at its start has its entry in the legend.

    Example:
        >>> from norton_det.reporting.plots import plain
        >>> print(plain("$5 or $10"))
        \$5 or \$10
        >>> plain("_x")
        '\u200b_x'
    """
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def style(axes: "Axes", title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the look of the report."""
    axes.set_title(plain(title), fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel(plain(xlabel))
    axes.set_ylabel(plain(ylabel))
    axes.grid(color="0.5", alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.patch.set_alpha(0)


def legend(axes: "Axes", **options: Any) -> None:
    """Draw a legend without a frame, if there is something to explain."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, **options)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure to an image file, on white."""
    write_atomically(path, lambda name: figure.savefig(name, dpi=110, facecolor="white"))


def as_svg(figure: "Figure") -> str:
    """Return a figure as an SVG element for a page: what is black takes the colour of the page's text.

    Example:
        >>> from norton_det.reporting.plots import as_svg, new_figure
        >>> text = as_svg(new_figure(2, 1))
        >>> text.startswith("<svg "), "#000000" in text
        (True, False)
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    body = text[text.index("<svg") :]
    body = re.sub(r'^<svg [^>]*(viewBox="[^"]*")[^>]*>', rf'<svg xmlns:xlink="{_LINK}" \1>', body)
    return body.replace("#000000", "currentColor").strip()


def width_of(figure: "Figure") -> int:
    """Return the width of a figure on a page in pixels.

    Example:
        >>> from norton_det.reporting.plots import new_figure, width_of
        >>> width_of(new_figure(10, 4))
        920
    """
    return round(92 * figure.get_figwidth())


def running_mean(values: Sequence[float], window: int) -> Any:
    """Return the mean of each value and those before it, at most ``window`` of them.

    Example:
        >>> from norton_det.reporting.plots import running_mean
        >>> running_mean([2.0, 4.0, 6.0], 2).tolist()
        [2.0, 3.0, 5.0]
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
