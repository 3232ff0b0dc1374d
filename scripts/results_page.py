"""Write the page of results: the cost of each config beside the published one, and the measured results."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.cli.common import Parser, command
from norton_det.config import Config, read_config
from norton_det.cost.complexity import Complexity, count_complexity
from norton_det.errors import DataError
from norton_det.evaluation.coco import MAIN_LINES
from norton_det.files import read_json, write_text
from norton_det.formatting import format_count, parse_count, table
from norton_det.reporting.measured import MeasuredRow, baseline, read_measured
from norton_det.reporting.published import DENSE

ROOT = Path(__file__).parent.parent
COSTS = ("config", "rank", "rates", "parameters", "published", "MACs", "published convention", "published", "deviation")
COSTS_OF_OURS = ("config", "parameters", "MACs", "published convention", "MACs for each object")
MEASURED = ("network", "data set", "row", "top-1, %", "to dense", "MACs", "parameters", "epochs", "minutes", "note")
_REAL_DATA = Path(__file__).with_name("results_real_data.md")
_OURS = """## Costs of the rows that are ours

The rows of these files were not published. They compress the whole detector: FPN, RPN and heads as well."""
_PAGE = """# Results

Written by `python -m scripts.results_page`; do not edit. The commands are quoted as they were run, some with an earlier
release: `python tools/compress.py` is `norton-det compress` now, and `--form` is `--implementation`.

## Costs of the published rows

The network of every file under `configs/` is built, and its cost is counted. *MACs* are those of convolutions and
linear layers. The *published convention* adds 3 for each output element of a batch norm, and for Keypoint R-CNN the
keypoint head for one object. Detectors are counted at 800x800 pixels with 1000 proposals. *Deviation* is published /
ours - 1. Rank and rates of the rows marked *r* are not published; they were reconstructed, as their files say.
Published numbers of parameters are truncated, and those of the pruned VGG-16-BN do not include the biases of the
decomposed layers.

{configs}

{ours}## Measured results

The data set `cifar10_jpeg` is CIFAR-10 with its images stored as JPEG, which is lossy. Accuracies on it are lower than
on CIFAR-10; compare them only with that of the dense network in the same table.

{measured}

{commands}

## Detectors, dense and compressed

*Configuration* is the rank, with the pruning rates if there are any. AP and AR are COCO's, on the held-out images that
the commands make or name. MACs are counted at 800x800 with 1000 proposals. Minutes are those of all commands of a row.

{detectors}

{real}"""


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, count and write the page."""
    parser = Parser(description=__doc__)
    add, docs = parser.add_argument, ROOT / "docs"
    add("--output", default=str(docs / "results.md"), metavar="FILE", help="page to write")
    add("--measured", default=str(docs / "measured.json"), metavar="FILE", help="measured rows")
    add("--detectors", default=str(docs / "detectors"), metavar="DIR", help="folder with reports of the demo")
    args = parser.parse_args(argv)
    reports = [_read_report(file) for file in sorted(Path(args.detectors).glob("*.json"))]
    rows = read_measured(args.measured)
    files = sorted((ROOT / "configs").glob("*/*.yaml"))
    configs = {file: read_config(file) for file in files}
    bar = tqdm(configs, desc="count", unit="config", disable=None, leave=False)
    costs = {file: count_complexity(configs[file].spec()) for file in bar}
    published, ours = ([file for file in files if bool(configs[file].ours) == own] for own in (False, True))
    page = _PAGE.format(
        configs=table(COSTS, [_config_row(file, configs[file], costs[file]) for file in published], "markdown"),
        ours=_ours({file: (configs[file], costs[file]) for file in ours}),
        measured=table(MEASURED, [_measured_row(row, rows) for row in rows], "markdown"),
        commands="\n\n".join(f"{row.network}, {row.label}:\n\n```sh\n{row.command}\n```" for row in rows),
        detectors="\n\n".join(map(_report, reports)),
        real=_REAL_DATA.read_text(encoding="utf-8"),
    )
    write_text(args.output, page)
    print(f"written: {args.output}")


def _config_row(file: Path, config: Config, cost: Complexity) -> list[str]:
    macs, params = (str(config.published[name]) for name in ("macs", "params"))
    return [
        f"`{file.parent.name}/{file.stem}`" + (" *r*" if config.reconstructed else ""),
        str(config.rank),
        f"`{config.rates}`" if config.rates else "none",
        f"{cost.params:,}",
        params,
        format_count(cost.macs),
        format_count(cost.macs_published),
        macs,
        f"{100 * (parse_count(macs) / cost.macs_published - 1):+.2f} %",
    ]


def _ours(rows: Mapping[Path, tuple[Config, Complexity]]) -> str:
    """Return the section of the rows that are ours; nothing where there are none."""
    cells = [
        [
            f"`{file.parent.name}/{file.stem}`",
            f"{cost.params:,}",
            *map(format_count, (cost.macs, cost.macs_published, cost.macs_per_detection)),
        ]
        for file, (config, cost) in rows.items()
    ]
    return f"{_OURS}\n\n{table(COSTS_OF_OURS, cells, 'markdown')}\n\n" if cells else ""


def _measured_row(row: MeasuredRow, rows: Sequence[MeasuredRow]) -> list[str]:
    dense = baseline([other for other in rows if (other.network, other.dataset) == (row.network, row.dataset)])
    difference = None if row.label == DENSE or not row.top1 or not dense.top1 else row.top1 - dense.top1
    return [
        row.network,
        row.dataset,
        row.label,
        "" if row.top1 is None else f"{row.top1:.2f}",
        "" if difference is None else f"{difference:+.2f}",
        format_count(row.macs_published),
        f"{row.params:,}",
        *("" if value is None else f"{value:g}" for value in (row.epochs, row.minutes)),
        row.note,
    ]


def _read_report(file: Path) -> Any:
    report = read_json(file, dict, "a report of the demo")
    if missing := [name for name in ("title", "rows") if not report.get(name)]:
        raise DataError(f"{file}: lacks {' and '.join(missing)}; expected a report of the demo")
    return report


def _report(report: Mapping[str, Any]) -> str:
    """Return the section of one detector: a table of each kind of metrics, the costs, the commands."""
    rows = report["rows"]
    parts = [f"### {report['title']}"]
    for kind in rows[0]["metrics"]:
        lines = MAIN_LINES[kind]
        cells = [[_name(row), *(f"{row['metrics'][kind][line]:.3f}" for line in lines)] for row in rows]
        parts.append(table((kind, *lines), cells, "markdown"))
    minutes = [sum(step["seconds"] for step in row["steps"]) / 60 for row in rows]
    costs = [
        [_name(row), format_count(row["macs"]), f"{row['params']:,}", f"{duration:.1f}"]
        for row, duration in zip(rows, minutes, strict=True)
    ]
    parts.append(table(("configuration", "MACs", "parameters", "minutes"), costs, "markdown"))
    parts += [report["note"]] if report.get("note") else []
    steps = [step for row in rows for step in row["steps"]]
    commands = "\n".join(f"{step['command']}  # {step['seconds'] / 60:.1f} min" for step in steps)
    return "\n\n".join([*parts, f"```sh\n{commands}\n```"])


def _name(row: Mapping[str, Any]) -> str:
    return DENSE if row["setting"] == DENSE else f"`{row['setting']}`"


if __name__ == "__main__":
    sys.exit(main())
