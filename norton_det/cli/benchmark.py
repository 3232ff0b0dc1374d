"""Time the network in a file on this machine, as it is and deployed, against the dense one.

Images and the dense network's weights are random, by --seed. All networks run in turn in this process; the times are
medians, and the ratios to the dense network are medians over pairs of neighbouring runs. So that the work of a detector
does not depend on its weights, it runs at a fixed number of proposals (its limit, by default 1000) and one fixed
detection for each image.

Examples:
  norton-det benchmark r50.safetensors
  norton-det benchmark out/checkpoint.pth --image-size 640 --batch-size 1 --json
  norton-det benchmark fast.safetensors --parts
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import norton_det as nd
from norton_det.cli.common import Parser
from norton_det.cli.numbers import SEED, SIDE, whole
from norton_det.cli.options import add_device
from norton_det.cost.fixed_work import DETECTIONS, PARTS, fix_work
from norton_det.deployment.precision import LOWER
from norton_det.deployment.record import deployment_of
from norton_det.errors import UsageError, printable
from norton_det.formatting import format_count, table
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn_counted import PROPOSALS
from norton_det.models.rcnn_options import PROPOSALS_OPTION
from norton_det.models.tasks import Detection, Images
from norton_det.runtime.device import check_device
from norton_det.runtime.part_times import timed_parts
from norton_det.runtime.timing import Stopwatch, describe_machine, time_alternating

DENSE, FILE, DEPLOYED = "dense", "file", ", deployed"
REST = "rest"
_WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """The times of one network.

    Attributes:
        network: "dense" or "file", whether it is deployed, and the lower precision in which it computes.
        milliseconds: median of a batch.
        spread: largest time less the smallest, over the median.
        images_per_second: at the median.
        speedup: median of the dense network's time over this one's.
        macs: multiply-accumulates for one image; None of a network that is deployed here.
        params: likewise.
    """

    network: str
    milliseconds: float
    spread: float
    images_per_second: float
    speedup: float
    macs: int | None
    params: int | None
    error: float | None = None


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("file", metavar="FILE", help="compressed file or training checkpoint")
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--image-size", type=SIDE, metavar="S", help="side of the images in pixels (default: the architecture's)")
    add("--batch-size", default=1, type=whole(1), metavar="N", help="images in a batch")
    add("--repeats", default=10, type=whole(1), metavar="N", help="timed runs of each network")
    add("--seed", default=0, type=SEED, metavar="K", help="of the images and of the dense network's weights")
    add("--dtype", choices=list(LOWER), metavar="T", help="time both deployed in lower precision as well")
    add("--parts", action="store_true", help="time the parts of a detector as well, in further runs")
    add_device(group)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON rather than a table")


def run(args: argparse.Namespace) -> None:
    """Time and print."""
    check_device(args.device)
    net, spec = nd.load(args.file, args.device)
    architecture = ARCHITECTURES[spec.arch]
    size = args.image_size or architecture.image_size
    proposals = spec.options.get(PROPOSALS_OPTION, PROPOSALS) if architecture.task.name == Detection.name else None
    dense = nd.Spec(spec.arch, spec.num_classes, options=spec.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        images = _on_device(architecture.task.example(size, args.batch_size), args.device)
        networks = {DENSE: nd.build(dense).to(args.device).eval(), FILE: net}
    if proposals is not None:
        for one in networks.values():
            _fix(one, size, proposals)
    elif args.parts:
        raise UsageError(f"--parts with {args.file}, a {spec.arch}: expected a detector")
    networks |= _deployed(networks, images, args.dtype)
    rows = _time(networks, images, {DENSE: dense, FILE: spec}, size, args)
    parts = _time_parts(networks, images, args.repeats) if args.parts else {}
    conditions = {
        "file": args.file,
        "arch": spec.arch,
        "machine": describe_machine(),
        "device": args.device,
        "image_size": size,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "proposals": proposals,
        "detections": None if proposals is None else DETECTIONS,
        "file_is_deployed": deployment_of(net) is not None,
    }
    if args.json:
        print(json.dumps({**conditions, "rows": [asdict(row) for row in rows], "parts": parts}, indent=1))
    else:
        print(_text(conditions, rows))
        if parts:
            print(f"\n{_parts_table(parts)}")


def _on_device(images: Images, device: str) -> Images:
    return images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]


def _fix(net: Any, size: int, proposals: int) -> None:
    """Let a detector take images of one size as they are, with work that does not depend on its weights."""
    net.transform.min_size, net.transform.max_size = (size,), size
    fix_work(net, proposals)


def _deployed(networks: dict[str, nn.Module], images: Images, dtype: str | None) -> dict[str, nn.Module]:
    """Return the networks deployed, and also in a lower precision; those that are deployed already are left out."""
    plain = {name: net for name, net in networks.items() if deployment_of(net) is None}
    deployed = {f"{name}{DEPLOYED}": nd.deploy(net, images) for name, net in plain.items()}
    if dtype is not None:
        lower = {name: nd.deploy(net, images, dtype=LOWER[dtype]) for name, net in plain.items()}
        deployed |= {f"{name}{DEPLOYED}, {dtype}": net for name, net in lower.items()}
    return deployed


def _time_parts(networks: dict[str, nn.Module], images: Images, repeats: int) -> dict[str, dict[str, float]]:
    """Return for each network the median milliseconds of each part, and of the rest."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in networks}

    def timing(name: str, net: nn.Module) -> Callable[[], None]:
        forward = _forward(net, images)

        def run() -> None:
            whole = Stopwatch()
            with whole, timed_parts(net, PARTS) as watches:
                forward()
            parts = {part: watch.seconds for part, watch in watches.items()}
            runs[name].append({**parts, REST: whole.seconds - sum(parts.values())})

        return run

    time_alternating({name: timing(name, net) for name, net in networks.items()}, repeats, warmup=_WARM_UP)
    measured = {name: seconds[_WARM_UP:] for name, seconds in runs.items()}
    return {
        name: {part: 1e3 * median(run[part] for run in of_net) for part in of_net[0]}
        for name, of_net in measured.items()
    }


def _parts_table(parts: dict[str, dict[str, float]]) -> str:
    rows = [(part, *(f"{of_net[part]:.2f}" for of_net in parts.values())) for part in next(iter(parts.values()))]
    return table(("ms by part", *parts), rows)


def _time(
    networks: dict[str, nn.Module], images: Images, specs: dict[str, nd.Spec], size: int, args: argparse.Namespace
) -> list[Row]:
    """Time the networks in turn."""
    runs = {name: _forward(net, images) for name, net in networks.items()}
    seconds = time_alternating(runs, args.repeats, warmup=_WARM_UP)
    costs = {name: nd.count_complexity(spec, size) for name, spec in specs.items()}
    return [
        Row(
            name,
            1e3 * median(times),
            (max(times) - min(times)) / median(times),
            args.batch_size / median(times),
            median(dense / time for dense, time in zip(seconds[DENSE], times, strict=True)),
            costs[name].macs if name in costs else None,
            costs[name].params if name in costs else None,
            _error(networks[name]),
        )
        for name, times in seconds.items()
    ]


def _error(net: nn.Module) -> float | None:
    """Return the error of the outputs on the example of a network in lower precision."""
    deployment = deployment_of(net)
    return None if deployment is None or deployment.dtype is None else deployment.difference


def _forward(net: nn.Module, images: Images) -> Callable[[], None]:
    def forward() -> None:
        with torch.inference_mode():
            net(images)

    return forward


def _text(conditions: dict[str, Any], rows: list[Row]) -> str:
    size, batch, repeats = (conditions[name] for name in ("image_size", "batch_size", "repeats"))
    lines = [
        f"{printable(conditions['file'])} ({conditions['arch']}) on {conditions['device']}: {conditions['machine']}",
        f"batch {batch}x3x{size}x{size}, {repeats} runs of each network in turn",
    ]
    if conditions["proposals"]:
        lines.append(f"fixed for each image: {conditions['proposals']} proposals, {conditions['detections']} detection")
        lines.append(f"MACs are counted at {PROPOSALS} proposals")
    if conditions["file_is_deployed"]:
        lines.append("the file is that of a deployed network and is timed as it was deployed")
    header = ("network", "ms", "spread", "images per second", "dense / this", "MACs per image", "parameters")
    errors = [
        f"{row.network}: outputs differ by {row.error:.1e} of the largest value from float32"
        for row in rows
        if row.error is not None
    ]
    return "\n".join([*lines, "", table(header, [_cells(row) for row in rows]), *([""] if errors else []), *errors])


def _cells(row: Row) -> list[str]:
    counts = ["" if count is None else format_count(count) for count in (row.macs, row.params)]
    times = [f"{row.milliseconds:.2f}", f"{row.spread:.0%}", f"{row.images_per_second:.1f}", f"{row.speedup:.2f}"]
    return [row.network, *times, *counts]
