"""Draw accuracy against the reduction of MACs and of parameters: published rows, and measured ones.

Example:
  norton-det pareto --network vgg16_bn --output vgg16_bn.png vgg16_bn.svg
"""

import argparse
from pathlib import Path

from norton_det.cli.common import Parser
from norton_det.cli.options import check_output
from norton_det.errors import printable
from norton_det.files import write_atomically
from norton_det.reporting.measured import read_measured
from norton_det.reporting.pareto import pareto_figure
from norton_det.reporting.published import METRICS, names

MEASURED = Path(__file__).parents[2] / "docs" / "measured.json"
SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument_group("data").add_argument
    networks = ", ".join(names("network"))
    add("--network", required=True, metavar="NAME", help=f"architecture, _cifar may be left out: {networks}")
    add("--metric", default="top1", choices=METRICS, metavar="NAME", help="accuracy")
    add("--measured", metavar="FILE", help="measured rows (default: docs/measured.json of a checkout)")
    add = parser.add_argument_group("output").add_argument
    add("--relative", action="store_true", help="draw the difference of accuracy to the dense row of the same data set")
    add("--output", required=True, nargs="+", metavar="FILE", help=f"files to write ({', '.join(SUFFIXES)})")


def run(args: argparse.Namespace) -> None:
    """Draw and write."""
    for output in args.output:
        check_output(output, *SUFFIXES)
    file = args.measured or (MEASURED if MEASURED.exists() else None)
    measured = read_measured(file) if file else []
    figure = pareto_figure(args.network, measured, metric=args.metric, relative=args.relative)
    for output in args.output:
        write_atomically(output, figure.savefig)
        print(f"written: {printable(output)}")
