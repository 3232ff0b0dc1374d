"""Draw the summary of README: accuracy, time and size of compressed networks beside the dense ones, as measured."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import norton_det  # noqa: F401  # the detectors are registered on import
from benchmarks import Row, read_rows
from norton_det.cli.common import Parser, command
from norton_det.cli.demo import PUBLISHED
from norton_det.cli.options import check_output
from norton_det.config import read_config
from norton_det.cost.complexity import count_complexity
from norton_det.errors import DataError
from norton_det.files import read_json, write_atomically
from norton_det.formatting import format_count
from norton_det.reporting.published import DENSE
from norton_det.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
SIZE = 800
"""Side of the images at which time and MACs are stated, in pixels."""
_BACKBONE = "resnet50_0.92g"
_DETECTORS = {"faster": "bbox", "mask": "segm", "keypoint": "keypoints"}
"""The detectors, and the kind of results whose AP is drawn."""
_COMPRESSED, _DENSE = "tab:red", "0.85"


class Pair(NamedTuple):
    """A quantity of the dense and of the compressed network."""

    dense: float
    compressed: float


Summary = dict[str, dict[str, Pair]]
"""Network -> panel -> quantity."""
PANELS: dict[str, Callable[[float], str]] = {
    "AP": "{:.3f}".format,
    "time of an image": "{:.2f} s".format,
    "MACs": lambda count: format_count(int(count)),
    "parameters": lambda count: format_count(int(count)),
}
"""The quantities, and how they are written."""


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, and draw."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--speed", default=str(DOCS / "speed.json"), metavar="FILE", help="rows of benchmarks.run")
    add("--detectors", default=str(DOCS / "detectors"), metavar="DIR", help="folder with reports of the demo")
    add("--output", default=str(DOCS / "summary.svg"), metavar="FILE", help="figure to write (.svg or .png)")
    args = parser.parse_args(argv)
    check_output(args.output, ".svg", ".png")
    summary = summarise(read_rows(Path(args.speed)), Path(args.detectors))
    write_atomically(args.output, summary_figure(summary).savefig)
    print(f"written: {args.output}")


def summarise(rows: Sequence[Row], detectors: Path) -> Summary:
    """Return the measured quantities of the backbone and of the detectors with it.

    Args:
        rows: of the benchmarks ``backbone`` and ``detector``.
        detectors: folder with the demo's reports on the detectors.

    Raises:
        DataError: a row or a report is missing.
    """
    spec = read_config(_BACKBONE).spec()
    costs = [count_complexity(one, SIZE) for one in (Spec(spec.arch, spec.num_classes), spec)]
    summary = {
        "ResNet-50": {
            "time of an image": _time(rows, "backbone", f"backbone 0.92G; other: dense, 1 x {SIZE}x{SIZE}"),
            "MACs": Pair(*(cost.macs for cost in costs)),
            "parameters": Pair(*(cost.params for cost in costs)),
        }
    }
    for name, kind in _DETECTORS.items():
        file = detectors / f"{name}.json"
        reports = {row["setting"]: row for row in read_json(file, dict, "a report of the demo")["rows"]}
        if missing := {DENSE, PUBLISHED} - reports.keys():
            raise DataError(f"{file}: has no row {' and '.join(sorted(missing))}; expected a report of the demo")
        pair = [reports[DENSE], reports[PUBLISHED]]
        summary[f"{name.title()} R-CNN"] = {
            "AP": Pair(*(report["metrics"][kind]["AP"] for report in pair)),
            "time of an image": _time(rows, "detector", f"detector {name} at {SIZE}x{SIZE}"),
            "MACs": Pair(*(report["macs"] for report in pair)),
            "parameters": Pair(*(report["params"] for report in pair)),
        }
    return summary


def _time(rows: Sequence[Row], benchmark: str, name: str) -> Pair:
    """Return the seconds of the row of a benchmark whose name begins with ``name``."""
    found = [row for row in rows if row.benchmark == benchmark and row.name.startswith(name)]
    if len(found) != 1:
        raise DataError(f"{len(found)} rows of benchmark {benchmark} begin with {name!r}; expected one")
    return Pair(found[0].other, found[0].ours)


def summary_figure(summary: Summary) -> "Figure":
    """Return a figure with a panel for each quantity and a bar for each network, as a fraction of the dense network."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True, gridspec_kw={"wspace": 0.04})
    for ax, panel in zip(axes, PANELS, strict=True):
        _draw(ax, summary, panel)
    axes[0].set_yticks(range(len(summary)), list(summary), fontsize=11)
    axes[0].invert_yaxis()
    handles = [Patch(color=_DENSE, label="dense"), Patch(color=_COMPRESSED, label="compressed")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def _draw(ax: "Axes", summary: Summary, panel: str) -> None:
    write = PANELS[panel]
    for y, quantities in enumerate(summary.values()):
        if panel not in quantities:
            continue
        dense, compressed = quantities[panel]
        ax.barh(y, 1, height=0.35, color=_DENSE)
        ax.barh(y, compressed / dense, height=0.35, color=_COMPRESSED)
        text = f"{write(dense)} \N{RIGHTWARDS ARROW} {write(compressed)}"
        ax.text(0, y - 0.24, text, fontsize=10, verticalalignment="bottom")
    ax.set_title(panel, fontsize=12, fontweight="bold", loc="left", pad=12)
    ax.margins(x=0)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
