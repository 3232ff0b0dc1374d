"""Draw accuracy against the reduction of MACs and of parameters: published rows, and our own measured ones.

Example:
  --network vgg16_bn --output vgg16_bn.png vgg16_bn.svg
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from norton_det.cli.common import Parser, command
from norton_det.errors import UsageError
from norton_det.files import write_atomically
from norton_det.reporting.measured import read_measured
from norton_det.reporting.pareto import pareto_figure

MEASURED = Path(__file__).parents[2] / "docs" / "measured.json"
SUFFIXES = (".png", ".svg", ".pdf")


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, draw and write."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", required=True, help="architecture with published rows (vgg16_bn, resnet50, ...)")
    add("--output", required=True, nargs="+", metavar="FILE", help=f"files to write ({', '.join(SUFFIXES)})")
    add("--metric", default="top1", help="top1, top5; detectors: AP, AP50, AP75, AR1, ... (default: top1)")
    add("--measured", metavar="FILE", help="our own results (default: docs/measured.json, where it is there)")
    add("--relative", action="store_true", help="draw the difference of accuracy to the own baseline")
    args = parser.parse_args(argv)
    for output in map(Path, args.output):
        if output.suffix not in SUFFIXES:
            raise UsageError(f"--output {output}: expected a name that ends with one of: {', '.join(SUFFIXES)}")
        if not output.parent.is_dir():
            raise UsageError(f"--output {output}: folder {output.parent} does not exist")
    file = args.measured or (MEASURED if MEASURED.exists() else None)
    measured = read_measured(file) if file else []
    figure = pareto_figure(args.network, measured, metric=args.metric, relative=args.relative)
    for output in args.output:
        write_atomically(output, figure.savefig)
        print(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
