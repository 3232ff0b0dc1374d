"""Figures of what a detector finds: precision and recall, confusion matrix, sizes, kinds of errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from norton_det.evaluation.error_split import KINDS
from norton_det.reporting.analysis import Analysis
from norton_det.reporting.plots import COLOURS, MISSED, legend, new_figure, plain, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 10
"""Classes with a curve and a name of their own: those with the most objects."""
_INSIDE = 4
"""Classes that are named within the axes; more of them beside."""
_NUMBERED = 20
"""Classes of a confusion matrix whose cells have their numbers."""
_NAMED_ROWS = 100
"""More classes are numbers."""


def precision_recall_figure(sides: Sequence[Analysis]) -> "Figure":
    """Return a figure of precision against recall at an IoU of 0.5, a curve for each class with objects.

    Of many classes, those with the most objects are named. A dot is the best F1 of a class.

    Args:
        sides: one detector, or two that are drawn beside each other.
    """
    named = len(sides[0].curves) > _INSIDE
    figure = new_figure((8.2 if named else 6.2) * len(sides), 4.8)
    for axes, side in zip(np.atleast_1d(figure.subplots(1, len(sides), sharey=True)), sides, strict=True):
        _draw_curves(axes, side)
        style(axes, f"Precision and recall: {side.name}", "recall", "precision")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        many = len(side.curves) > _INSIDE
        legend(axes, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {"loc": "lower left"}))
    return figure


def _draw_curves(axes: "Axes", side: Analysis) -> None:
    curves = {name: curve for name, curve in side.curves.items() if curve.objects}
    named = sorted(curves, key=lambda name: -curves[name].objects)[:_NAMED]
    for name, curve in curves.items():
        i = named.index(name) if name in named else -1
        colour, width = (COLOURS[i % len(COLOURS)], 1.6) if i >= 0 else ("0.5", 0.6)
        label = plain(f"{name} ({curve.objects})") if i >= 0 else None
        line = "-" if i < len(COLOURS) else "--"
        axes.plot(
            [0, *curve.recall],
            [1, *curve.precision],
            line,
            color=colour,
            linewidth=width,
            label=label,
        )
        best = side.best_of_classes[name]
        if i >= 0 and best.recall is not None and best.precision is not None:
            axes.plot([best.recall], [best.precision], "o", color=colour, markersize=5)
    if len(curves) > len(named):
        axes.plot([], [], color="0.5", linewidth=0.6, label=f"{len(curves) - len(named)} other classes")


def confusion_figure(sides: Sequence[Analysis]) -> "Figure":
    """Return a figure of the confusion matrix of each detector: rows are objects, as fractions of their class.

    Args:
        sides: one detector, or two that are drawn beside each other.
    """
    count = len(sides[0].matches.classes) + 1
    size = min(11.0, 3 + 0.55 * count)
    figure = new_figure(size * len(sides) + 0.8, size)
    for axes, side in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides, strict=True):
        _draw_confusion(axes, side)
    return figure


def _draw_confusion(axes: "Axes", side: Analysis) -> None:
    matrix, classes = side.confusion, side.matches.classes
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = len(matrix)
    for row in range(size):
        for column in np.flatnonzero(matrix[row]).tolist():
            right = row == column
            axes.add_patch(_cell(column, row, COLOURS[0] if right else MISSED, fractions[row, column]))
            if size <= _NUMBERED:
                text = f"{matrix[row, column]}"
                axes.text(column, row, text, ha="center", va="center", fontsize=9 if size < 12 else 7)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    style(axes, f"Confusion: {side.title}", "detected as", "object")
    axes.grid(visible=False)
    if size <= _NAMED_ROWS:
        classes = tuple(map(plain, classes))
        axes.set_xticks(range(size), [*classes, "missed"], rotation=90 if size > 5 else 0)
        axes.set_yticks(range(size), [*classes, "nothing"])
        axes.tick_params(labelsize=9 if size <= _NUMBERED else 6)


def _cell(column: int, row: int, colour: str, fraction: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.08 + 0.62 * fraction, linewidth=0)


def sizes_figure(sides: Sequence[Analysis]) -> "Figure":
    """Return a figure of the objects of each size, found and missed, and of the AP of COCO's three sizes.

    Args:
        sides: one detector, or two whose fractions and AP are drawn beside each other.
    """
    figure = new_figure(13, 4)
    counts, found, ap = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 0.8])
    groups = [i for i, group in enumerate(sides[0].sizes) if group.objects]
    names = [_range_of(sides[0].sizes[i].low, sides[0].sizes[i].high) for i in groups]
    objects = [sides[0].sizes[i].objects for i in groups]
    bars = counts.bar(names, objects, color="0.6")
    counts.bar_label(bars, fontsize=8)
    style(counts, "Objects by size", "square root of the area in pixels", "objects")
    fractions = {side.name: [side.sizes[i].found / side.sizes[i].objects for i in groups] for side in sides}
    _draw_groups(found, names, fractions)
    style(found, "Found at the best threshold", "square root of the area in pixels", "fraction of the objects")
    lines = {"small": "APs", "medium": "APm", "large": "APl"}
    present = {name: line for name, line in lines.items() if sides[0].metrics.get(line) is not None}
    values = {side.name: [side.metrics[line] or 0.0 for line in present.values()] for side in sides}
    _draw_groups(ap, [f"{name}" for name in present], values)
    style(ap, "AP by COCO's sizes", "below 32, to 96, above", "AP")
    for axes in (found, ap):
        axes.set_ylim(0, 1.07)
    if len(sides) > 1:
        figure.legend(*found.get_legend_handles_labels(), loc="outside upper right", ncols=len(sides), frameon=False)
    return figure


def _range_of(low: float, high: float) -> str:
    return f"≥ {low:g}" if np.isinf(high) else f"{low:g}-{high:g}"


def _draw_groups(axes: "Axes", names: Sequence[str], values: dict[str, list[float]]) -> None:
    """Draw bars side by side, a group for each name."""
    width = 0.8 / len(values)
    for i, (side, numbers) in enumerate(values.items()):
        x = np.arange(len(names)) + (i - (len(values) - 1) / 2) * width
        bars = axes.bar(x, numbers, width * 0.92, color=COLOURS[i], label=plain(side) if len(values) > 1 else None)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(names)), names)


def errors_figure(sides: Sequence[Analysis]) -> "Figure":
    """Return a figure of the error split: what each kind of error costs in AP50, with their numbers.

    Args:
        sides: one detector, or two whose bars are beside each other.
    """
    figure = new_figure(8.5, 3.6 + 0.6 * (len(sides) - 1))
    axes = figure.subplots()
    height = 0.8 / len(sides)
    for i, side in enumerate(sides):
        if side.errors is None:
            continue
        costs = [side.errors.costs[kind] or 0.0 for kind in KINDS]
        y = np.arange(len(KINDS)) + (i - (len(sides) - 1) / 2) * height
        bars = axes.barh(y, costs, height * 0.9, color=COLOURS[i], label=plain(side.name) if len(sides) > 1 else None)
        texts = [f"{cost:.3f}  ({side.errors.counts[kind]})" for cost, kind in zip(costs, KINDS, strict=True)]
        axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.invert_yaxis()
    axes.set_xlim(
        0, 1.2 * max(cost or 0.0 for side in sides if side.errors for cost in side.errors.costs.values()) or 1
    )
    style(axes, "AP50 that each kind of error costs (number of errors)", "AP50 gained if corrected")
    axes.grid(visible=False, axis="y")
    legend(axes, loc="lower right")
    return figure
