"""The curves of a training: loss and its parts, learning rate, metrics."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from norton_det.reporting.plots import COLOURS, legend, new_figure, plain, running_mean, style
from norton_det.reporting.run import Line, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED = 60
"""More points than this are drawn with their running mean."""
_LINES = ("AP", "AP50", "AP75")
_STYLES = ("-", "--", ":")
_MOST_METRICS = 8


def curves_figure(run: Run, others: Mapping[str, Run] | None = None) -> "Figure":
    """Return a figure of the loss, the learning rate and the metrics of a run along its epochs.

    Args:
        run: the run.
        others: runs whose main metric is drawn for comparison, by name.

    Example:
        >>> from pathlib import Path
        >>> from norton_det.reporting.curves import curves_figure
        >>> from norton_det.reporting.run import Run
        >>> epochs = [{"epoch": i, "lr": 0.1, "train_loss": 2.0 - i, "top1": 40.0 + i} for i in range(2)]
        >>> len(curves_figure(Run(Path("run"), {}, epochs, [])).axes)
        3
    """
    figure = new_figure(13, 4.2)
    loss, rate, metrics = figure.subplots(1, 3, width_ratios=[1.4, 1, 1.4])
    _draw_losses(loss, run)
    lines = [line for line in run.iterations or run.epochs if line.get("lr") is not None]
    rate.plot(positions(lines, run.iterations), [line["lr"] for line in lines], color=COLOURS[0])
    style(rate, "Learning rate", "epoch")
    rate.set_ylim(bottom=0)
    _draw_metrics(metrics, run, others or {})
    return figure


def positions(lines: Sequence[Line], iterations: Sequence[Line]) -> list[float]:
    """Return where lines lie along the epochs: an epoch's line at its end, an iteration's within its epoch.

    Args:
        lines: lines of epochs or of iterations.
        iterations: all lines of iterations, by which the number of iterations of an epoch is estimated.

    Example:
        >>> from norton_det.reporting.curves import positions
        >>> iterations = [{"epoch": i // 4, "iteration": i} for i in range(1, 8, 2)]
        >>> positions(iterations, iterations), positions([{"epoch": 0}, {"epoch": 1}], [])
        ([0.25, 0.75, 1.25, 1.75], [1, 2])
    """
    steps = _steps(iterations)
    return [line["iteration"] / steps if "iteration" in line else line["epoch"] + 1 for line in lines]


def _steps(iterations: Sequence[Line]) -> float:
    """Return the number of iterations in an epoch: the last one of each epoch has a line."""
    return max(((line["iteration"] + 1) / (line["epoch"] + 1) for line in iterations), default=1)


def _draw_losses(axes: "Axes", run: Run) -> None:
    parts = list(dict.fromkeys(name for line in run.iterations for name in line if name.startswith("loss")))
    for name, colour in zip(sorted(parts, key=lambda name: name != "loss"), ("#000000", *COLOURS * 2), strict=False):
        lines = [line for line in run.iterations if line.get(name) is not None]
        label = "all" if name == "loss" else name.removeprefix("loss_")
        _draw_line(axes, positions(lines, run.iterations), [line[name] for line in lines], label, colour)
    epochs = [line for line in run.epochs if line.get("train_loss") is not None]
    x, y = positions(epochs, []), [line["train_loss"] for line in epochs]
    line: dict[str, Any] = {"linewidth": 0, "color": "#000000"} if parts else {"linewidth": 1.5, "color": COLOURS[0]}
    axes.plot(x, y, marker="o", markersize=4, label="mean of the epoch", **line)
    style(axes, "Loss", "epoch")
    axes.set_ylim(bottom=0)
    legend(axes)


def _draw_line(axes: "Axes", x: Sequence[float], y: Sequence[float], label: str, colour: str) -> None:
    """Draw values; many of them faintly, with their running mean."""
    many = len(y) > _SMOOTHED
    axes.plot(x, running_mean(y, len(y) // 30) if many else y, color=colour, linewidth=1.5, label=plain(label))
    if many:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)


def _draw_metrics(axes: "Axes", run: Run, others: Mapping[str, Run]) -> None:
    names = run.metric_names
    kinds = list(dict.fromkeys(name.rpartition("_")[0] for name in names if name.endswith("_AP")))[:_MOST_METRICS]
    if kinds:
        shown = [
            (f"{kind}_{line}", f"{kind} {line}", i, j)
            for i, kind in enumerate(kinds[:_MOST_METRICS])
            for j, line in enumerate(_LINES)
        ]
    else:
        shown = [(name, name, i, 0) for i, name in enumerate(names[:_MOST_METRICS])]
    for name, label, i, j in shown:
        _draw_metric(axes, run, name, label=label, color=COLOURS[i % len(COLOURS)], linestyle=_STYLES[j])
    main = f"{kinds[-1]}_AP" if kinds else next(iter(names), "")
    for i, (title, other) in enumerate(others.items()):
        _draw_metric(
            axes,
            other,
            main,
            label=f"{title}: {main.replace('_', ' ')}",
            color=COLOURS[-1 - i % len(COLOURS)],
            alpha=0.8,
        )
    style(axes, "Evaluation", "epoch", "" if kinds else "%")
    if kinds:
        axes.set_ylim(0, 1)
    legend(axes, ncols=max(1, len(kinds)))


def _draw_metric(axes: "Axes", run: Run, name: str, *, label: str, **options: Any) -> None:
    lines = [line for line in run.epochs if line.get(name) is not None]
    if lines:
        x, y = positions(lines, []), [line[name] for line in lines]
        axes.plot(x, y, marker="o", markersize=3, label=plain(label), **options)
