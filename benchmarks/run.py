"""Measure this package against the alternatives that a user has, both in this process, in turn.

Alternatives that loop in Python are timed on a sample, which is stated, and scaled to the whole work. Peak memory is
the increase during a run.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import BENCHMARKS, Row, Settings, compare_sides, read_rows
from norton_det.cli.common import Parser, command
from norton_det.cli.numbers import whole
from norton_det.files import write_json
from norton_det.formatting import table
from norton_det.runtime.device import check_device
from norton_det.runtime.timing import describe_machine

CONFIGS = Path(__file__).parent.parent / "configs"
HEADER = ("benchmark", "ours, s", "other, s", "ratio", "spread", "ours, MB", "other, MB")


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, measure and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=[*BENCHMARKS, "all"], help="name of the benchmark")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="decompose, similarity: ranks (default: 1 2 4 8)")
    add("--sizes", type=int, nargs="+", default=[224, 800], help="backbone: image sizes (default: 224 800)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8], help="backbone: batch sizes (default: 1 8)")
    add("--train-batch", type=whole(1), default=128, help="train-step: batch size (default: 128; an eighth at 224x224)")
    add("--configs", default=str(CONFIGS), metavar="DIR", help="folder of the configs of the published rows")
    add("--only", default="", metavar="TEXT", help="run only the cases whose arguments contain this text")
    add("--device", default="cpu", help="device of the networks: cpu or cuda (default: cpu)")
    add("--amp", action="store_true", help="run the networks in bfloat16 by autocast")
    add("--repeats", type=whole(1), default=3, help="number of measured runs of each side (default: 3)")
    add("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    add("--json", action="store_true", help="print a JSON list of rows")
    add("--output", metavar="FILE", help="also write the rows to this JSON file, and keep the other rows in it")
    args = parser.parse_args(argv)
    check_device(args.device)
    written = {(row.benchmark, row.name): row for row in (read_rows(Path(args.output)) if args.output else [])}
    rows = []
    for row in _rows(args):
        rows.append(row)
        written[row.benchmark, row.name] = row
        if args.output:  # after each case, so that a failure does not lose the others
            write_json(args.output, [asdict(row) for row in written.values()])
    print(json.dumps([asdict(row) for row in rows], indent=1) if args.json else _text(rows))


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    values = {field.name: getattr(args, field.name) for field in fields(Settings)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    settings = Settings(**{**values, "configs": Path(args.configs)})
    selected = BENCHMARKS if args.name == "all" else {args.name: BENCHMARKS[args.name]}
    cases = [(name, *case) for name, make in selected.items() for case in make(settings)]
    cases = [case for case in cases if args.only in json.dumps(case[1:])]
    logging.getLogger("norton_det").setLevel(logging.WARNING)  # without a log of each deployment
    torch.manual_seed(0)
    bar = tqdm(cases, desc=args.name, unit="case", disable=None, leave=False)
    for case in bar:
        yield compare_sides(*case, settings)


def _text(rows: Sequence[Row]) -> str:
    lines = [f"machine: {describe_machine()}", table(HEADER, [_cells(row) for row in rows])]
    for row in rows:
        if row.parts:
            parts = [(part, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}") for part, (a, b) in row.parts.items()]
            lines += ["", table((row.name, "ours, s", "other, s", "ratio"), parts)]
    return "\n".join([*lines, "", *(f"{row.name}: {row.detail}" for row in rows if row.detail)])


def _cells(row: Row) -> tuple[str, ...]:
    memory = ["-" if value is None else f"{value:.0f}" for value in (row.ours_memory, row.other_memory)]
    spread = f"{row.ours_spread:.0%} / {row.other_spread:.0%}"
    return (row.name, f"{row.ours:.3f}", f"{row.other:.3f}", f"{row.ratio:.2f}", spread, *memory)


if __name__ == "__main__":
    sys.exit(main())
