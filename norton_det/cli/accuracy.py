r"""Measure classifiers that are compressed without labels: plain, calibrated and reconstructed.

A configuration is a rank, or a rank and pruning rates: 2 or 7:[0.]+[0.18]*29 (rank 0 decomposes nothing). A rank may be
given for each layer: [0]*19+[5]*36:[0.]*30. A config stands for its rank, rates, criterion and decomposition.

Example:
  norton-det accuracy --arch resnet56_cifar --weights resnet56.pt --data-path cifar10 \
      --configurations 1 2 3 "7:[0.]+[0.18]*29" resnet56_41m --json rows.json
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

import norton_det as nd
from norton_det.cli.common import Parser
from norton_det.cli.numbers import FACTOR, SEED, whole
from norton_det.cli.options import CONFIGURATION, add_device, check_output, parse_configuration
from norton_det.data.batching import Batching, hold_out
from norton_det.data.calibration_set import read_calibration_set
from norton_det.data.image_datasets import ImageSet, read_images
from norton_det.decompositions import in_implementation
from norton_det.evaluation.accuracy import evaluate
from norton_det.files import write_json
from norton_det.formatting import table
from norton_det.models import ARCHITECTURES, classifiers
from norton_det.models.tasks import Images
from norton_det.models.weights import initial_network
from norton_det.runtime.device import check_device

STAGES = ("plain", "calibrated", "reconstructed")
_BATCH = 250  # of the evaluation


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument_group("model").add_argument
    add("--arch", required=True, choices=classifiers(), metavar="NAME", help="architecture")
    add("--weights", required=True, metavar="FILE|NAME", help="state-dict file, or the name of torchvision's weights")
    add("--seed", default=0, type=SEED, metavar="K", help="of random starts and of the choice of images")
    add = parser.add_argument_group("data").add_argument
    add("--data-path", required=True, metavar="DIR", help="folder with the splits; calibration is on train/")
    add("--holdout", default=0, type=whole(0), metavar="N", help="evaluate on N training images that are left out")
    add = parser.add_argument_group("compression").add_argument
    flags = ("--configurations", "--settings")
    add(*flags, required=True, nargs="+", metavar=CONFIGURATION, help="compression configurations to measure")
    add("--calibration-images", default=1024, type=whole(1), metavar="N", help="images of the calibration")
    add("--reconstruct", default=0, type=whole(0), metavar="EPOCHS", help="as in norton-det compress")
    add("--reconstruct-images", default=1024, type=whole(1), metavar="N", help="images of --reconstruct")
    add("--batch-size", default=128, type=whole(1), metavar="N", help="images in an update of --reconstruct")
    add("--lr", default=1e-3, type=FACTOR, help="initial learning rate of --reconstruct")
    add("--amp", action="store_true", help="mixed precision in --reconstruct")
    add_device(parser.add_argument_group("computation"))
    add = parser.add_argument_group("output").add_argument
    add("--json", metavar="FILE", help="file to write the rows to")


def run(args: argparse.Namespace) -> None:
    """Compress and evaluate each configuration in each way, print the table."""
    if args.json:
        check_output(args.json, flag="--json")
    configurations = {text: parse_configuration(text, args.arch) for text in args.configurations}
    check_device(args.device)
    dense = initial_network(ARCHITECTURES[args.arch], args.weights)[0].to(args.device)
    images = _evaluation_images(args)
    count = max(args.calibration_images, args.reconstruct_images if args.reconstruct else 0)
    calibration = read_calibration_set(args.data_path, args.arch, count, holdout=args.holdout, seed=args.seed)
    rows: list[dict[str, Any]] = [{"setting": "dense", "plain": _top1(dense, images)}]
    print(f"dense: {rows[0]['plain']:.2f}", flush=True)
    for text, configuration in configurations.items():
        rows.append({"setting": text})
        for stage, seconds, net in _stages(args, dense, configuration, calibration):
            rows[-1] |= {stage: _top1(net, images), f"{stage}_seconds": seconds}
            print(f"{text}: {stage} {rows[-1][stage]:.2f} ({seconds:.0f} s)", flush=True)
    stages = [stage for stage in STAGES if stage in rows[-1]]
    cells = [[row["setting"], *(f"{row[stage]:.2f}" if stage in row else "" for stage in stages)] for row in rows]
    print(table(("top-1 in percent", *stages), cells))
    if args.json:
        report = {"images": len(images), "unlabelled": len(calibration), "arguments": vars(args), "rows": rows}
        write_json(args.json, report)


def _evaluation_images(args: argparse.Namespace) -> ImageSet:
    dataset = ARCHITECTURES[args.arch].dataset
    if not args.holdout:
        return read_images(dataset, args.data_path, "val")
    images = read_images(dataset, args.data_path, "train")
    return images.subset(hold_out(len(images), args.holdout)[1])


def _top1(net: nn.Module, images: ImageSet) -> float:
    with in_implementation(net, "dense"):
        device = next(net.parameters()).device
        return evaluate(net, images.evaluation(Batching(_BATCH)), device).top1


def _stages(
    args: argparse.Namespace, dense: nn.Module, configuration: Mapping[str, Any], calibration: Images
) -> Iterator[tuple[str, float, nn.Module]]:
    """Yield the networks of a configuration by :data:`STAGES`, and the seconds that the last step took."""
    options: dict[str, Any] = {"arch": args.arch, "seed": args.seed, **configuration}
    begin = time.perf_counter()
    net, _ = nd.compress(dense, **options)
    yield STAGES[0], time.perf_counter() - begin, net
    begin = time.perf_counter()
    net, spec = nd.compress(dense, **options, calibration=calibration[: args.calibration_images])
    yield STAGES[1], time.perf_counter() - begin, net
    if args.reconstruct:
        begin = time.perf_counter()
        training = {"epochs": args.reconstruct, "batch_size": args.batch_size, "lr": args.lr, "amp": args.amp}
        images = calibration[: args.reconstruct_images]
        net, _ = nd.reconstruct(net, spec, dense, images, **training, seed=args.seed)
        yield STAGES[2], time.perf_counter() - begin, net
