r"""Find a setting that meets a budget of MACs, parameters, latency, never above it.

A rank and rates of the published form, within 1 % below (a latency comes from a table of layers measured on this
machine, which is built once and kept in the cache folder); or with --allocate a rank for each layer and a rate for each
channel group, chosen on unlabelled images for the least change of the network's output, and written as a config.

Examples:
  --arch resnet50 --target-macs 2.32e9 --target-params 14.51e6
  --arch resnet56_cifar --target-macs 73.22e6 --convention published --target-params 0.44e6 \
      --allocate --weights resnet56.pt --calibrate cifar10 --output resnet56_allocated.yaml
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.cli.common import Parser, check_counts, check_device, command
from norton_det.config import Config, write_config
from norton_det.cost.budget import CONVENTIONS, Budget
from norton_det.cost.cost_model import CostModel
from norton_det.data.calibration_set import read_calibration_set
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.formatting import human, table
from norton_det.models import ARCHITECTURES
from norton_det.models.weights import initial_network
from norton_det.pruning import CRITERIA
from norton_det.search.allocation import MEASURED, allocate
from norton_det.search.latency import LatencyModel
from norton_det.search.uniform import Candidate, search
from norton_det.structure.describe import described
from norton_det.structure.settings import dense_network


def _parser() -> Parser:
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
    add("--json", action="store_true", help="print JSON")
    add("--allocate", action="store_true", help="a rank for each layer and a rate for each group, for these weights")
    add("--weights", help="with --allocate: state-dict file, or the name of torchvision's weights")
    add("--calibrate", metavar="DIR", help="with --allocate: class folders or a COCO folder; its training images serve")
    add("--calibration-images", default=MEASURED, type=int, help=f"how many of them (default: {MEASURED})")
    add("--decomposition", default="cp", help=f"with --allocate: one of: {', '.join(DECOMPOSITIONS)} (default: cp)")
    add("--criterion", default="pabs", help=f"with --allocate: one of: {', '.join(CRITERIA)} (default: pabs)")
    add("--seed", default=0, type=int, help="(default: 0)")
    add("--output", metavar="FILE", help="with --allocate: config to write (.yaml)")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, search or allocate, and print."""
    args = _parser().parse_args(argv)
    check_counts(args, batch_size=1)
    check_device(args.device)
    if args.allocate:
        _allocate(args)
    else:
        _search(args)


def _search(args: argparse.Namespace) -> None:
    latency = None
    if args.target_latency_ms is not None or args.target_speedup is not None:
        ranks = None if args.rank is None else (args.rank,)
        dense = dense_network(args.arch, device="cpu")
        model = CostModel(dense.architecture)
        latency = LatencyModel(model, dense, ranks=ranks, batch=args.batch_size, device=args.device)
    found = search(
        args.arch,
        target_macs=args.target_macs,
        target_params=args.target_params,
        target_latency_ms=args.target_latency_ms,
        target_speedup=args.target_speedup,
        latency=latency,
        rank=args.rank,
        convention=args.convention,
        limit=args.top,
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


def _allocate(args: argparse.Namespace) -> None:
    check_counts(args, calibration_images=1)
    if args.target_latency_ms is not None or args.target_speedup is not None:
        raise UsageError("--allocate with a target of latency: expected one of MACs, parameters or both")
    for name in ("weights", "calibrate"):
        if getattr(args, name) is None:
            raise UsageError(f"--allocate needs --{name}: what is cut is chosen for these weights, on training images")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UsageError(f"--output {args.output}: folder {Path(args.output).parent} does not exist")
    budget = Budget(args.target_macs, args.target_params, args.convention)
    budget.targets()
    net, _ = initial_network(ARCHITECTURES[args.arch], args.weights)
    images = read_calibration_set(args.calibrate, args.arch, args.calibration_images, seed=args.seed)
    options = {"decomposition": args.decomposition, "criterion": args.criterion}
    network = described(net, ARCHITECTURES[args.arch])
    found = allocate(network, budget, images, **options, seed=args.seed)
    if args.output:
        write_config(
            Config(args.arch, ARCHITECTURES[args.arch].dataset, found.rank, found.rates, **options), args.output
        )
    if args.json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"rank: {found.rank}\nrates: {found.rates}")
    header = ("MACs", "published convention", "parameters", "change of the output")
    row = (human(found.macs), human(found.macs_published), human(found.params), f"{100 * found.change:.1f} %")
    print(table(header, [row]))
    if args.output:
        print(f"written: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
