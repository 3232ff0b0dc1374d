"""Find a rank and pruning rates that meet a budget of MACs, parameters, latency: within 1 % below, never above.

A latency comes from a table of layers measured on this machine, which is built once and kept in the cache folder.

Example:
  --arch resnet50 --target-macs 2.32e9 --target-params 14.51e6
"""

import argparse
import json
import sys
from collections.abc import Sequence

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.cli import Parser, check_counts, check_device, command, human, table
from norton_det.cost import CostModel
from norton_det.latency import LatencyModel
from norton_det.models import ARCHITECTURES
from norton_det.search import CONVENTIONS, RANKS, Candidate, search


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, search and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, help=f"one of: {', '.join(ARCHITECTURES)}")
    add("--target-macs", type=float, metavar="M", help="the most multiply-accumulates for one image")
    add("--target-params", type=float, metavar="P", help="the most parameters")
    add("--target-latency-ms", type=float, metavar="T", help="the most milliseconds, deployed, on this machine")
    add("--target-speedup", type=float, metavar="X", help="the same, as a factor to the dense network's, deployed")
    add("--batch-size", default=1, type=int, help="images at once, of a latency (default: 1)")
    add("--device", default="cpu", help="cpu or cuda, of a latency (default: cpu)")
    add("--rank", type=int, metavar="R", help="the only rank to look at (default: 1 to 8)")
    add("--convention", default="plain", help=f"how MACs are counted: {' or '.join(CONVENTIONS)} (default: plain)")
    add("--top", default=10, type=int, metavar="N", help="number of candidates to print (default: 10)")
    add("--json", action="store_true", help="print a JSON list")
    args = parser.parse_args(argv)
    check_counts(args, batch_size=1)
    check_device(args.device)
    latency = None
    if args.target_latency_ms is not None or args.target_speedup is not None:
        ranks = RANKS if args.rank is None else (args.rank,)
        model = CostModel(args.arch)
        latency = LatencyModel(model, args.arch, ranks=ranks, batch=args.batch_size, device=args.device)
    found = search(
        args.arch,
        target_macs=args.target_macs,
        target_params=args.target_params,
        target_latency_ms=args.target_latency_ms,
        target_speedup=args.target_speedup,
        latency=latency,
        rank=args.rank,
        convention=args.convention,
        most=args.top,
    )
    if args.json:
        names = ("rank", "rates", "macs", "params", "macs_published", "deviation", "latency_ms")
        print(json.dumps([{name: getattr(candidate, name) for name in names} for candidate in found], indent=1))
        return
    rows = [
        (c.rates, c.rank, human(c.macs), human(c.macs_published), human(c.params), f"{100 * c.deviation:.2f} %", _ms(c))
        for c in found
    ]
    print(table(("rates", "rank", "MACs", "published convention", "parameters", "below the target", "ms"), rows))
    if latency is not None:
        print(
            f"dense: {latency.dense:.2f} ms; times are sums of layers measured alone: deploy to see the network's own"
        )


def _ms(candidate: Candidate) -> str:
    return "-" if candidate.latency_ms is None else f"{candidate.latency_ms:.2f}"


if __name__ == "__main__":
    sys.exit(main())
