"""Write the page of results: each config's costs beside the published ones, and what was measured here."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.cli.common import Parser, command
from norton_det.config import read_config
from norton_det.cost.complexity import count_complexity
from norton_det.errors import DataError
from norton_det.evaluation.coco import MAIN_LINES
from norton_det.files import read_json, write_atomically
from norton_det.formatting import human, parse_count
from norton_det.reporting.measured import MeasuredRow, baseline, read_measured
from norton_det.reporting.published import DENSE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COSTS = ("config", "rank", "rates", "parameters", "published", "MACs", "published convention", "published", "deviation")
MEASURED = ("network", "data set", "row", "top-1, %", "to dense", "MACs", "parameters", "epochs", "minutes", "note")
_PAGE = """# Results

Written by `python tools/results.py`; do not edit.

## Costs of the published rows

Every file under `configs/` is built and counted. MACs: convolutions and linear layers; *published convention*: 3 more
for every output element of a batch norm, and for Keypoint R-CNN the keypoint head for one object. Detectors: 800x800
pixels, 1000 proposals. Deviation: published over ours, less one. Rank and rates of the rows marked *r* are not known;
they were reconstructed, as their files say. Published parameters are truncated, and those of the pruned VGG-16-BN leave
out the biases of the decomposed layers.

{configs}

## Measured here

The data set `cifar10_jpeg` is CIFAR-10 with its images stored as JPEG, which is lossy: accuracies on it are lower than
on CIFAR-10, and compare only with that of the dense network in the same table.

{measured}

{commands}

## Detectors, dense and compressed

*Setting*: rank, and pruning rates if there are any. AP and AR are COCO's, on the held-out images that the commands make
or name; MACs are at 800x800 with 1000 proposals; minutes are those of all the commands of a row.

{detectors}
"""


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, count and write the page."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", default=str(ROOT / "docs" / "results.md"), metavar="FILE", help="page to write")
    parser.add_argument(
        "--measured", default=str(ROOT / "docs" / "measured.json"), metavar="FILE", help="measured rows"
    )
    parser.add_argument(
        "--detectors", default=str(ROOT / "docs" / "detectors"), metavar="DIR", help="reports of demo.py"
    )
    args = parser.parse_args(argv)
    reports = [_read_report(file) for file in sorted(Path(args.detectors).glob("*.json"))]
    rows = read_measured(args.measured)
    files = sorted((ROOT / "configs").glob("*/*.yaml"))
    configs = [_config_row(file) for file in tqdm(files, desc="count", unit="config", disable=None, leave=False)]
    page = _PAGE.format(
        configs=_markdown(COSTS, configs),
        measured=_markdown(MEASURED, [_measured_row(row, rows) for row in rows]),
        commands="\n\n".join(f"{row.network}, {row.label}:\n\n```sh\n{row.command}\n```" for row in rows),
        detectors="\n\n".join(map(_report, reports)),
    )
    write_atomically(args.output, lambda name: Path(name).write_text(page))
    print(f"written: {args.output}")


def _config_row(file: Path) -> list[str]:
    config = read_config(file)
    cost = count_complexity(config.spec())
    macs, params = (str(config.published[name]) for name in ("macs", "params"))
    return [
        f"`{file.parent.name}/{file.stem}`" + (" *r*" if config.reconstructed else ""),
        str(config.rank),
        f"`{config.rates}`" if config.rates else "none",
        f"{cost.params:,}",
        params,
        human(cost.macs),
        human(cost.macs_published),
        macs,
        f"{100 * (parse_count(macs) / cost.macs_published - 1):+.2f} %",
    ]


def _measured_row(row: MeasuredRow, rows: Sequence[MeasuredRow]) -> list[str]:
    dense = baseline([other for other in rows if (other.network, other.dataset) == (row.network, row.dataset)])
    accuracy = [row.top1, None if row.label == DENSE or not row.top1 or not dense.top1 else row.top1 - dense.top1]
    return [
        row.network,
        row.dataset,
        row.label,
        "" if accuracy[0] is None else f"{accuracy[0]:.2f}",
        "" if accuracy[1] is None else f"{accuracy[1]:+.2f}",
        human(row.macs_published),
        f"{row.params:,}",
        *("" if value is None else f"{value:g}" for value in (row.epochs, row.minutes)),
        row.note,
    ]


def _read_report(file: Path) -> Any:
    report = read_json(file, dict, "a report of demo.py")
    if missing := [name for name in ("title", "rows") if not report.get(name)]:
        raise DataError(f"{file}: lacks {' and '.join(missing)}; expected a report of demo.py")
    return report


def _report(report: Mapping[str, Any]) -> str:
    """Return the section of one detector: a table for each kind of figures, the costs, the commands."""
    rows = report["rows"]
    parts = [f"### {report['title']}"]
    for kind in rows[0]["metrics"]:
        lines = MAIN_LINES[kind]
        cells = [[_name(row), *(f"{row['metrics'][kind][line]:.3f}" for line in lines)] for row in rows]
        parts.append(_markdown((kind, *lines), cells))
    costs = [
        [
            _name(row),
            human(row["macs"]),
            f"{row['params']:,}",
            f"{sum(step['seconds'] for step in row['steps']) / 60:.1f}",
        ]
        for row in rows
    ]
    parts.append(_markdown(("setting", "MACs", "parameters", "minutes"), costs))
    parts += [report["note"]] if report.get("note") else []
    steps = [step for row in rows for step in row["steps"]]
    commands = "\n".join(f"{step['command']}  # {step['seconds'] / 60:.1f} min" for step in steps)
    return "\n\n".join([*parts, f"```sh\n{commands}\n```"])


def _name(row: Mapping[str, Any]) -> str:
    return DENSE if row["setting"] == DENSE else f"`{row['setting']}`"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
