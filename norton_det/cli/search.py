r"""Find compression configurations within a budget of MACs, parameters or latency.

Without --allocate: a rank and rates of the published form, within 1 % below the budget. A latency comes from a table of
layers that are timed on this machine; it is built once and kept in the cache folder. With --allocate: a rank for each
layer and a rate for each channel group, chosen on images without labels for the least change of the network's output,
and written as a config.

Examples:
  norton-det search --arch resnet50 --target-macs 2.32e9 --target-params 14.51e6
  norton-det search --arch resnet56_cifar --target-macs 73.22e6 --convention published --target-params 0.44e6 \
      --allocate --weights resnet56.pt --calibrate cifar10 --output resnet56_allocated.yaml
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from norton_det.checkpoint import has_spec, load
from norton_det.cli.common import Parser
from norton_det.cli.data_options import add_division, division_of
from norton_det.cli.numbers import SEED, whole
from norton_det.cli.options import add_budget, add_methods, add_scope, budget_of, check_output
from norton_det.config import Config, write_config
from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel
from norton_det.data.calibration_set import read_calibration_set
from norton_det.errors import UsageError, printable
from norton_det.formatting import format_count, table
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.weights import initial_network
from norton_det.runtime.device import check_device, default_device
from norton_det.search.allocation import MEASURED, Allocation, allocate
from norton_det.search.latency import LatencyModel
from norton_det.search.uniform import Candidate, search
from norton_det.structure.describe import described
from norton_det.structure.network import Network
from norton_det.structure.settings import dense_network

logger = logging.getLogger(__name__)

_COSTS = ("MACs", "published convention", "parameters")
_ALLOCATION = {"weights": None, "calibrate": None, "calibration_images": MEASURED, "criterion": "pabs"}
_ALLOCATION |= {"seed": 0, "output": None}
"""Arguments of --allocate alone, and their defaults."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--arch", required=True, choices=[*ARCHITECTURES], metavar="NAME", help="architecture")
    add("--rank", type=whole(1), metavar="R", help="the only rank to consider (default: 1 to 8)")
    add_scope(group)
    add = add_budget(parser).add_argument
    add("--batch-size", default=1, type=whole(1), metavar="N", help="images in a batch, for a latency")
    add("--device", help="cuda or cpu, for a latency (default: cuda if there is one; with --allocate: cpu)")
    group = parser.add_argument_group("allocation")
    add = group.add_argument
    add("--allocate", action="store_true", help="a rank for each layer and a rate for each group, for these weights")
    add("--weights", metavar="FILE|NAME", help="state-dict file, or the name of torchvision's weights")
    add("--calibrate", metavar="DIR", help="class folders, or a folder with COCO annotations: training images")
    add("--calibration-images", default=MEASURED, type=whole(1), metavar="N", help="number of them")
    add_division(group)
    add_methods(group)
    add("--seed", default=0, type=SEED, metavar="K", help="of the choice of images and of random starts")
    add("--output", metavar="FILE", help="config to write (.yaml)")
    add = parser.add_argument_group("output").add_argument
    add("--top", default=10, type=whole(0), metavar="N", help="number of candidates to print, without --allocate")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Search or allocate, and print."""
    check_device(args.device or "cpu")
    if isinstance(args.decomposition, Mapping):
        raise UsageError("--decomposition is by layer; expected one name: a search chooses the layers")
    if args.allocate:
        _allocate(args)
    else:
        _search(args)


def _search(args: argparse.Namespace) -> None:
    for name, default in _ALLOCATION.items():
        if getattr(args, name) != default:
            logger.warning("--%s is ignored without --allocate", name.replace("_", "-"))
    latency = None
    if args.target_latency_ms is not None or args.target_speedup is not None:
        ranks = None if args.rank is None else (args.rank,)
        dense = dense_network(args.arch, device="cpu", scope=args.scope, round_to=args.round_to)
        model = CostModel(dense.architecture)
        latency = LatencyModel(
            model,
            dense,
            decomposition=args.decomposition or "cp",
            ranks=ranks,
            batch=args.batch_size,
            device=args.device or default_device(),
        )
    candidates = search(
        args.arch,
        target_macs=args.target_macs,
        target_params=args.target_params,
        target_activation_memory=args.target_activation_memory,
        target_latency_ms=args.target_latency_ms,
        target_speedup=args.target_speedup,
        latency=latency,
        rank=args.rank,
        decomposition=args.decomposition or "cp",
        convention=args.convention,
        limit=args.top,
        scope=args.scope,
        round_to=args.round_to,
    )
    if args.json:
        names = ("rank", "rates", "macs", "params", "macs_published", "deviation", "latency_ms", "activation_memory")
        print(json.dumps([{name: getattr(candidate, name) for name in names} for candidate in candidates], indent=1))
        return
    print(table(("rates", "rank", *_COSTS, "below the target", "ms"), [_row(candidate) for candidate in candidates]))
    if latency is not None:
        print(f"dense: {latency.dense:.2f} ms. Times are sums of layers that were timed alone; norton-det benchmark")
        print("times a whole network.")


def _row(candidate: Candidate) -> Sequence[object]:
    milliseconds = "-" if candidate.latency_ms is None else f"{candidate.latency_ms:.2f}"
    return (candidate.rates, candidate.rank, *_costs(candidate), f"{100 * candidate.deviation:.2f} %", milliseconds)


def _costs(result: Candidate | Allocation) -> list[str]:
    return [format_count(count) for count in (result.macs, result.macs_published, result.params)]


def _allocate(args: argparse.Namespace) -> None:
    budget = _check_allocation(args)
    architecture = ARCHITECTURES[args.arch].scoped(args.scope).rounding_to(args.round_to)
    network = _network(args.weights, architecture)
    count, division = args.calibration_images, division_of(args)
    images = read_calibration_set(args.calibrate, args.arch, count, seed=args.seed, **division)
    options = {"decomposition": args.decomposition, "criterion": args.criterion, "seed": args.seed}
    allocation = allocate(network, budget, images, **options)
    if args.output:
        chosen = (allocation.rank, allocation.rates, args.criterion, allocation.decomposition)
        part = {"scope": args.scope, "round_to": args.round_to}
        write_config(Config(args.arch, architecture.dataset, *chosen, **part), args.output)
    if args.json:
        print(json.dumps(asdict(allocation), indent=1))
        return
    if isinstance(allocation.decomposition, Mapping) and isinstance(allocation.rank, Mapping):
        methods, ranks = allocation.decomposition, allocation.rank
        print(table(("layer", "decomposition", "rank"), [(name, methods[name], ranks[name]) for name in ranks]))
    else:
        print(f"rank: {allocation.rank}")
    print(f"rates: {allocation.rates}")
    header, row = [*_COSTS, "change of the output"], [*_costs(allocation), f"{100 * allocation.change:.1f} %"]
    if allocation.latency_ms is not None:
        header, row = [*header, "ms"], [*row, f"{allocation.latency_ms:.2f}"]
    print(table(header, [row]))
    if args.output:
        print(f"written: {printable(args.output)}")


def _check_allocation(args: argparse.Namespace) -> Budget:
    """Refuse at once what would fail late; return the budget."""
    if args.rank is not None or args.device not in (None, "cpu") or args.batch_size != 1:
        raise UsageError(
            "--allocate with --rank, --device or --batch-size: expected none of them; it chooses the ranks, and its "
            "latency is that of one image on the CPU"
        )
    for name in ("weights", "calibrate"):
        if getattr(args, name) is None:
            raise UsageError(f"--allocate without --{name}: the allocation is measured with weights on training images")
    if args.output:
        check_output(args.output, ".yaml", ".yml")
    budget = budget_of(args)
    budget.check()
    return budget


def _network(weights: str, architecture: Architecture) -> Network:
    """Return the dense network of a file, with the number of classes and the options that the file has."""
    if not has_spec(weights):
        return described(initial_network(architecture, weights)[0], architecture)
    net, spec = load(weights, deployed=False)
    if spec.arch != architecture.name:
        raise UsageError(f"--weights {weights}: is a {spec.arch}; --arch is {architecture.name}")
    return described(net, architecture, spec)
