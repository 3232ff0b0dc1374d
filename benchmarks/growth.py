"""Growth of the cost with the numbers of filters and channels, the rank and the image size."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.compare import Row, Settings
from benchmarks.networks import ROW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "growth"
_LAYER = {"filters": 256, "channels": 256, "rank": 2}
_WIDTHS = (64, 128, 256, 512)
_RANKS = (1, 2, 4, 6, 8)
_SIZES = (128, 224, 400, 800)
_PANELS = (
    ("decompose-layer", "filters", "filters of a 3x3 layer"),
    ("decompose-layer", "channels", "channels of a 3x3 layer"),
    ("decompose-layer", "rank", "rank"),
    ("similarity", "filters", "filters, rank 4"),
    ("backbone", "size", "height and width of an image"),
)
_OTHERS = {"decompose-layer": "parafac, one by one", "similarity": "subspace_angles, one by one", "backbone": "dense"}


def growths(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``growth``, in each of which one number varies."""
    layers = [{**_LAYER, name: width} for name in ("filters", "channels") for width in _WIDTHS]
    layers += [{**_LAYER, "rank": rank} for rank in _RANKS]
    for layer in {tuple(layer.items()): layer for layer in layers}.values():
        yield "decompose-layer", layer
    for filters in _WIDTHS:
        yield "similarity", {"rank": 4, "filters": filters}
    for size in _SIZES:
        options = {"batch": 1, "device": settings.device, "amp": settings.amp}
        yield "backbone", {"config": str(settings.configs / ROW), "size": size, **options}


def growth_figure(rows: Sequence[Row]) -> "Figure":
    """Return a figure of the seconds of both sides with a panel for each number that varies.

    Args:
        rows: results; those of other benchmarks than ``growth`` are ignored.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for ax, (case, name, label) in zip(axes, _PANELS, strict=False):
        _draw(ax, [row for row in rows if _belongs(row, case, name)], name)
        ax.set(xlabel=label, ylabel="seconds", title=f"{case}\nother: {_OTHERS[case]}")
        ax.title.set_fontsize("medium")
    for ax in axes[len(_PANELS) :]:
        ax.set_axis_off()
    handles, names = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, names, loc="center")
    return figure


def _belongs(row: Row, case: str, name: str) -> bool:
    fixed = {key: value for key, value in _LAYER.items() if key != name} if case == "decompose-layer" else {}
    return row.benchmark == NAME and row.case == case and fixed.items() <= row.numbers.items()


def _draw(ax: "Axes", rows: Sequence[Row], name: str) -> None:
    ordered = sorted(rows, key=lambda row: row.numbers[name])
    values = [row.numbers[name] for row in ordered]
    ax.plot(values, [row.ours for row in ordered], "o-", color="tab:red", label="ours")
    ax.plot(values, [row.other for row in ordered], "s--", color="0.45", label="other")
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
