"""Find a rank and pruning rates that meet a budget of MACs, parameters or both: within 1 % below, never above.

Example:
  --arch resnet50 --target-macs 2.32e9 --target-params 14.51e6
"""

import argparse
import json
import sys
from collections.abc import Sequence

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.cli import Parser, command, human, table
from norton_det.models import ARCHITECTURES
from norton_det.search import CONVENTIONS, search


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, search and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, help=f"one of: {', '.join(ARCHITECTURES)}")
    add("--target-macs", type=float, metavar="M", help="the most multiply-accumulates for one image")
    add("--target-params", type=float, metavar="P", help="the most parameters")
    add("--rank", type=int, metavar="R", help="the only rank to look at (default: 1 to 8)")
    add("--convention", default="plain", help=f"how MACs are counted: {' or '.join(CONVENTIONS)} (default: plain)")
    add("--top", default=10, type=int, metavar="N", help="number of candidates to print (default: 10)")
    add("--json", action="store_true", help="print a JSON list")
    args = parser.parse_args(argv)
    found = search(
        args.arch,
        target_macs=args.target_macs,
        target_params=args.target_params,
        rank=args.rank,
        convention=args.convention,
        most=args.top,
    )
    if args.json:
        names = ("rank", "rates", "macs", "params", "macs_published", "deviation")
        print(json.dumps([{name: getattr(candidate, name) for name in names} for candidate in found], indent=1))
        return
    rows = [
        (c.rates, c.rank, human(c.macs), human(c.macs_published), human(c.params), f"{100 * c.deviation:.2f} %")
        for c in found
    ]
    print(table(("rates", "rank", "MACs", "published convention", "parameters", "below the target"), rows))


if __name__ == "__main__":
    sys.exit(main())
