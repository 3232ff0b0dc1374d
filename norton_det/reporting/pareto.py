"""The figure of accuracy against reduction, of published and measured rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from norton_det.errors import expect_choice
from norton_det.reporting.label_placement import write_names
from norton_det.reporting.measured import MeasuredRow, baseline
from norton_det.reporting.published import DENSE, METRICS, PublishedRow, published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"macs": "MACs", "params": "parameters"}
"""The costs that are reduced, with their names; the figure has a panel for each."""
_COMPARED: dict[str, Any] = {"color": "0.45", "marker": "o", "markersize": 4, "linestyle": ""}
_NORTON: dict[str, Any] = {"color": "tab:red", "marker": "D", "markersize": 6, "linestyle": "-", "linewidth": 1.2}
_MEASURED: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "markersize": 9, "linestyle": ""}
    for color, marker in (("tab:blue", "*"), ("tab:green", "^"), ("tab:purple", "s"), ("tab:brown", "P"))
]
_AXIS = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)"}


@dataclass(frozen=True)
class Series:
    """Rows that are drawn with the same markers.

    Attributes:
        name: name in the legend.
        rows: the rows in any order, without the baseline.
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
        """Return (reduction in percent, accuracy, name) of the rows that have both, ordered by reduction.

        Reductions are computed from the counts. The relative accuracy is that of the row minus that of the baseline.
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
    """Return a figure with two panels: accuracy against the reduction of MACs and of parameters.

    Args:
        network: architecture with published rows; the suffix ``_cifar`` may be omitted.
        measured: measured rows; those of other networks are ignored. The rows of each data set are a series, and its
            "dense" row is the baseline of the series.
        metric: one of ``norton_det.reporting.published.METRICS``.
        relative: draw the difference from the baseline of the series, which makes data sets and training recipes
            comparable.

    Raises:
        UsageError: the network is unknown, or none of its rows has the metric.
        DataError: the measured rows of a data set do not have exactly one "dense" row.
    """
    from matplotlib.figure import Figure

    rows = published(network)
    metrics = [name for name in METRICS if any(getattr(row, name) is not None for row in rows)]
    expect_choice(f"metric of {rows[0].network}", metric, metrics)
    series = _series(rows, [row for row in measured if row.network == rows[0].network])
    figure = Figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        _draw(axes, series, cost, metric, relative)
    panels[0].set_ylabel(_AXIS.get(metric, metric) + (", difference from the dense baseline" if relative else ""))
    figure.suptitle(f"{rows[0].network} on {rows[0].dataset}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.draw_without_rendering()  # computes the positions of the axes
    labelled = [one for one in series if one.labelled]
    for axes, cost in zip(panels, COSTS, strict=True):
        write_names(axes, [(*p, one.style["color"]) for one in labelled for p in one.points(cost, metric, relative)])
    return figure


def _series(rows: Sequence[PublishedRow], measured: Sequence[MeasuredRow]) -> list[Series]:
    """Return the series of the published and measured rows of one network."""
    dense = baseline(rows)
    compared = [row for row in rows if row.method not in (DENSE, "NORTON")]
    norton = [row for row in rows if row.method == "NORTON"]
    series = [
        Series("compared methods, published", compared, dense, _COMPARED, labelled=True),
        Series("NORTON, published", norton, dense, _NORTON, labelled=False),
    ]
    for i, dataset in enumerate(dict.fromkeys(row.dataset for row in measured)):
        of_dataset = [row for row in measured if row.dataset == dataset]
        compressed = [row for row in of_dataset if row.method != DENSE]
        style = _MEASURED[i % len(_MEASURED)]
        series.append(Series(f"measured on {dataset}", compressed, baseline(of_dataset), style, labelled=True))
    return [one for one in series if one.rows or isinstance(one.baseline, MeasuredRow)]


def _draw(axes: "Axes", series: Sequence[Series], cost: str, metric: str, relative: bool) -> None:
    """Draw the markers and baselines of one panel."""
    missing = 0
    for one in series:
        points = one.points(cost, metric, relative)
        missing += len(one.rows) - len(points)
        axes.plot([p[0] for p in points], [p[1] for p in points], label=one.name, **one.style)
    lines = {"dense baseline": (0.0, "0.2")} if relative else _baselines(series, metric)
    for name, (value, color) in lines.items():
        axes.axhline(value, color=color, linestyle="--", linewidth=1, zorder=1, label=name)
    note = f"\n(rows without this count or metric, not drawn: {missing})" if missing else ""
    axes.set_xlabel(f"reduction of {COSTS[cost]} (%){note}")
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.margins(0.08)


def _baselines(series: Sequence[Series], metric: str) -> dict[str, tuple[float, str]]:
    """Return the value and colour of the line of each dense row, by its name in the legend."""
    lines = {}
    for one in series:
        if (value := getattr(one.baseline, metric, None)) is None:
            continue
        if isinstance(one.baseline, MeasuredRow):
            lines[f"dense, measured on {one.baseline.dataset}"] = (value, one.style["color"])
        else:
            lines["dense, published"] = (value, "0.2")
    return lines
