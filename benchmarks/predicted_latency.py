r"""Compare the latency that the search predicts from single layers with that of whole deployed networks.

Run it on an idle machine: both are measured here, the table of layers too, where it is not in the cache folder.

Example:
  python -m benchmarks.predicted_latency --configs fasterrcnn_93g
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from norton_det.cli.common import Parser, command
from norton_det.cli.numbers import whole
from norton_det.config import read_config
from norton_det.cost.cost_model import CostModel
from norton_det.cost.fixed_work import fix_work
from norton_det.deployment.deploy import deploy
from norton_det.formatting import table
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.runtime.timing import describe_machine, time_alternating
from norton_det.search.latency import LatencyModel
from norton_det.spec import Spec
from norton_det.structure.build import build, build_network


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, measure and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", required=True, nargs="+", metavar="NAME|FILE", help="of one architecture")
    parser.add_argument(
        "--repeats", type=whole(1), default=5, help="number of measured runs of each network (default: 5)"
    )
    args = parser.parse_args(argv)
    specs = {name: read_config(name).spec() for name in args.configs}
    architecture = ARCHITECTURES[next(iter(specs.values())).arch]
    dense = Spec(architecture.name, architecture.num_classes)
    options: dict[str, list[Any]] = {}
    for spec in specs.values():
        for name, layer in spec.decompositions.items():
            options.setdefault(name, []).append(layer)
    model = LatencyModel(CostModel(architecture, dense), build_network(dense, architecture), options=options)
    specs = {"dense": dense, **specs}
    torch.manual_seed(0)
    images = architecture.task.example(architecture.image_size)
    runs = {name: partial(_run, _deployed(spec, images), images) for name, spec in specs.items()}
    measured = {name: 1e3 * median(seconds) for name, seconds in time_alternating(runs, args.repeats).items()}
    predicted = {name: float(model.at(spec.decompositions, spec.widths)) for name, spec in specs.items()}
    print(f"machine: {describe_machine()}")
    header = ("network", "predicted, ms", "measured, ms", "predicted speedup", "measured speedup")
    print(table(header, [(name, *_cells(name, predicted, measured)) for name in specs]))


def _cells(name: str, *times: dict[str, float]) -> list[str]:
    milliseconds = [f"{of_networks[name]:.1f}" for of_networks in times]
    return [*milliseconds, *(f"{of_networks['dense'] / of_networks[name]:.2f}" for of_networks in times)]


def _deployed(spec: Spec, images: Any) -> nn.Module:
    net = build(spec).eval()
    if ARCHITECTURES[spec.arch].task.name == Detection.name:
        fix_work(net)
    return deploy(net, images, repeats=3)


@torch.inference_mode()
def _run(net: nn.Module, images: Any) -> None:
    net(images)


if __name__ == "__main__":
    sys.exit(main())
