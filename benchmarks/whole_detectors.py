r"""Time the detectors of files by part, deployed, at 800x800 pixels with 1000 proposals, whatever they were trained at.

The weights are random: with fixed proposals and one fixed detection the work does not depend on them. The dense
detector and those of the files run in turn in this process. Run it on an idle machine.

Example:
  python -m benchmarks.whole_detectors fast.safetensors --repeats 9
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.detector import watched
from norton_det.checkpoint import read_spec
from norton_det.cli.common import Parser, command
from norton_det.cli.numbers import whole
from norton_det.cost.complexity import count_complexity
from norton_det.deployment.deploy import deploy
from norton_det.formatting import format_count, table
from norton_det.models.tasks import Detection
from norton_det.runtime.timing import Stopwatch, describe_machine
from norton_det.spec import Spec
from norton_det.structure.build import build


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, measure and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="compressed detectors of one architecture")
    parser.add_argument(
        "--repeats", type=whole(1), default=9, help="number of measured runs of each network (default: 9)"
    )
    args = parser.parse_args(argv)
    # Without its options and attributes a detector has torchvision's image size and number of proposals.
    specs = {file: replace(read_spec(file), options={}, attributes={}) for file in args.files}
    first = next(iter(specs.values()))
    specs = {"dense": Spec(first.arch, first.num_classes), **specs}
    torch.manual_seed(0)
    images = [torch.rand(3, Detection.image_size, Detection.image_size)]
    nets = {name: watched(deploy(build(spec).eval(), images)) for name, spec in specs.items()}
    seconds = _time(nets, images, args.repeats)
    print(f"machine: {describe_machine()}, {torch.get_num_threads()} threads")
    print(table(("network", "MACs", "parameters", "ms", "dense / this", "from", "to"), list(_rows(specs, seconds))))
    parts = list(nets["dense"][1])
    rows = [
        (name, *(f"{1e3 * median(of_part[part][1:]):.0f}" for part in parts)) for name, (_, of_part) in nets.items()
    ]
    print(table(("ms of", *parts), rows))


@torch.inference_mode()
def _time(nets: dict[str, Any], images: Any, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(1 + repeats):
        for name, (net, _) in nets.items():
            watch = Stopwatch()
            with watch:
                net(images)
            seconds[name].append(watch.seconds)
    return {name: times[1:] for name, times in seconds.items()}


def _rows(specs: dict[str, Spec], seconds: dict[str, list[float]]) -> Any:
    for name, spec in specs.items():
        cost = count_complexity(spec)
        ratios = [dense / this for dense, this in zip(seconds["dense"], seconds[name], strict=True)]
        counts = [format_count(count) for count in (cost.macs, cost.params)]
        spread = [f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios))]
        yield name, *counts, f"{1e3 * median(seconds[name]):.0f}", *spread


if __name__ == "__main__":
    sys.exit(main())
