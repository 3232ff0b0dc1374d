"""The picture of accuracy against reduction: what was published, and what was measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from norton_det.errors import UsageError
from norton_det.reporting.label_placement import write_names
from norton_det.reporting.measured import MeasuredRow, baseline
from norton_det.reporting.published import DENSE, METRICS, PublishedRow, published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"macs": "MACs", "params": "parameters"}
"""What is reduced: a panel each."""
_COMPARED: dict[str, Any] = {"color": "0.45", "marker": "o", "markersize": 4, "linestyle": ""}
_NORTON: dict[str, Any] = {"color": "tab:red", "marker": "D", "markersize": 6, "linestyle": "-", "linewidth": 1.2}
_MEASURED: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "markersize": 9, "linestyle": ""}
    for color, marker in (("tab:blue", "*"), ("tab:green", "^"), ("tab:purple", "s"), ("tab:brown", "P"))
]
_AXIS = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)"}


@dataclass(frozen=True)
class Series:
    """Rows that are drawn alike.

    Attributes:
        name: in the legend.
        rows: in any order, the baseline not among them.
        baseline: the row that reductions and relative accuracies refer to.
        style: keyword arguments of ``Axes.plot``.
        labelled: write the name of each row beside its marker.
    """

    name: str
    rows: Sequence[PublishedRow | MeasuredRow]
    baseline: PublishedRow | MeasuredRow
    style: dict[str, Any] = field(repr=False)
    labelled: bool

    def points(self, cost: str, metric: str, relative: bool) -> list[tuple[float, float, str]]:
        """Return (reduction in percent, accuracy, name) of the rows that have both, by reduction.

        Reductions are worked out from the counts. Relative accuracy is the row's minus the baseline's.
        """
        zero = getattr(self.baseline, metric, None) if relative else 0
        points = []
        for row in self.rows:
            count, value = getattr(row, cost), getattr(row, metric, None)
            if count is not None and value is not None and zero is not None:
                points.append((100 * (1 - count / getattr(self.baseline, cost)), value - zero, row.method))
        return sorted(points)


def pareto_figure(
    network: str, measured: Sequence[MeasuredRow] = (), *, metric: str = "top1", relative: bool = False
) -> "Figure":
    """Draw accuracy against the reduction of MACs and, beside it, of parameters.

    Args:
        network: architecture with published rows; ``_cifar`` may be left out.
        measured: rows of our own; those of other networks are passed over. Each dataset is a series, and its "dense"
            row the baseline of the others.
        metric: one of ``norton_det.reporting.published.METRICS``.
        relative: draw the difference to the own baseline, which makes different datasets or trainings comparable.

    Raises:
        UsageError: matplotlib is not installed; the network is unknown; no row of it has the metric.
        DataError: the measured rows of a dataset do not have exactly one "dense" row.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError(
            "matplotlib is not installed; expected it for pictures: pip install norton-det[plot]"
        ) from None

    rows = published(network)
    known = [name for name in METRICS if any(getattr(row, name) is not None for row in rows)]
    if metric not in known:
        raise UsageError(f"metric is {metric!r}; {rows[0].network} has: {', '.join(known)}")
    series = _series(rows, [row for row in measured if row.network == rows[0].network])
    figure = Figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        _draw(axes, series, cost, metric, relative)
    panels[0].set_ylabel(_AXIS.get(metric, metric) + (", less that of the own baseline" if relative else ""))
    figure.suptitle(f"{rows[0].network} on {rows[0].dataset}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.draw_without_rendering()  # settles where the axes are
    for axes, cost in zip(panels, COSTS, strict=True):
        named = [one for one in series if one.labelled]
        write_names(axes, [(*p, one.style["color"]) for one in named for p in one.points(cost, metric, relative)])
    return figure


def _series(rows: Sequence[PublishedRow], measured: Sequence[MeasuredRow]) -> list[Series]:
    """Return the series in which rows of one network are drawn."""
    dense = baseline(rows)
    compared = [row for row in rows if row.method not in (DENSE, "NORTON")]
    found = [Series("compared methods, published", compared, dense, _COMPARED, labelled=True)]
    found.append(Series("NORTON, published", [r for r in rows if r.method == "NORTON"], dense, _NORTON, labelled=False))
    for i, dataset in enumerate(dict.fromkeys(row.dataset for row in measured)):
        own = [row for row in measured if row.dataset == dataset]
        others = [row for row in own if row.method != DENSE]
        style = _MEASURED[i % len(_MEASURED)]
        found.append(Series(f"measured on {dataset}", others, baseline(own), style, labelled=True))
    return [one for one in found if one.rows or isinstance(one.baseline, MeasuredRow)]


def _draw(axes: "Axes", series: Sequence[Series], cost: str, metric: str, relative: bool) -> None:
    """Draw the markers and baselines of one panel."""
    missing = 0
    for one in series:
        points = one.points(cost, metric, relative)
        missing += len(one.rows) - len(points)
        axes.plot([p[0] for p in points], [p[1] for p in points], label=one.name, **one.style)
    lines = {"the own dense baseline": (0.0, "0.2")} if relative else _baselines(series, metric)
    for name, (value, color) in lines.items():
        axes.axhline(value, color=color, linestyle="--", linewidth=1, zorder=1, label=name)
    note = f"\n(rows that do not state it, not drawn: {missing})" if missing else ""
    axes.set_xlabel(f"reduction of {COSTS[cost]} (%){note}")
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.margins(0.08)


def _baselines(series: Sequence[Series], metric: str) -> dict[str, tuple[float, str]]:
    """Return value and colour of each dense row, by its name in the legend."""
    lines = {}
    for one in series:
        own = isinstance(one.baseline, MeasuredRow)
        if (value := getattr(one.baseline, metric, None)) is not None:
            name = f"dense, measured on {one.baseline.dataset}" if own else "dense, published"
            lines[name] = (value, one.style["color"] if own else "0.2")
    return lines
