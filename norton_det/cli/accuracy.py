"""Accuracy of compressed classifiers without labels: as they are, calibrated, and with --reconstruct trained.

A setting is a rank, or a rank and pruning rates: 2 or 7:[0.]+[0.18]*29 (rank 0 decomposes nothing). There may be a
rank for each layer: [0]*19+[5]*36:[0.]*30. Or it is a config, for its rank, rates, criterion and decomposition.

Example:
  --arch resnet56_cifar --weights resnet56.pt --data-path cifar10 --settings 1 2 3 "7:[0.]+[0.18]*29" --json rows.json
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import norton_det as nd
from norton_det.cli.common import Parser, check_counts, command, parse_setting
from norton_det.data.batching import Batching, hold_out
from norton_det.data.calibration_set import read_calibration_set
from norton_det.data.image_datasets import read_images
from norton_det.decompositions import in_implementation
from norton_det.errors import UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.files import write_json
from norton_det.formatting import table
from norton_det.models import ARCHITECTURES, CLASSIFIERS
from norton_det.models.tasks import Images
from norton_det.models.weights import initial_network

WAYS = ("plain", "calibrated", "reconstructed")


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, help=f"one of: {', '.join(CLASSIFIERS)}")
    add("--weights", required=True, help="state-dict file, or the name of torchvision's weights")
    add("--data-path", required=True, metavar="DIR", help="folder with the splits; calibration is on train/")
    add("--settings", required=True, nargs="+", metavar="RANK[:RATES]|FILE")
    add("--calibration-images", default=1024, type=int, help="(default: 1024)")
    add("--reconstruct", default=0, type=int, metavar="EPOCHS", help="as in compress.py (default: 0, not done)")
    add("--reconstruct-images", default=1024, type=int, help="(default: 1024)")
    add("--batch-size", default=128, type=int, help="images an update of --reconstruct (default: 128)")
    add("--lr", default=1e-3, type=float, help="learning rate of --reconstruct at first (default: 0.001)")
    add("--amp", action="store_true", help="mixed precision in --reconstruct")
    add("--holdout", default=0, type=int, metavar="N", help="evaluate on N training images that are left out")
    add("--seed", default=0, type=int, help="(default: 0)")
    add("--json", metavar="FILE", help="file to write the rows to")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, compress and evaluate each setting in each way, print the table."""
    args = _parser().parse_args(argv)
    check_counts(args, calibration_images=1, holdout=0, reconstruct=0, reconstruct_images=1, batch_size=1)
    if args.arch not in CLASSIFIERS:
        raise UsageError(f"--arch {args.arch}: expected one of: {', '.join(CLASSIFIERS)}")
    settings = [parse_setting(text, args.arch) for text in args.settings]
    dense, _ = initial_network(ARCHITECTURES[args.arch], args.weights)
    dataset = ARCHITECTURES[args.arch].dataset
    images = read_images(dataset, args.data_path, "train" if args.holdout else "val")
    images = images.subset(hold_out(len(images), args.holdout)[1]) if args.holdout else images
    count = max(args.calibration_images, args.reconstruct_images if args.reconstruct else 0)
    unlabelled = read_calibration_set(args.data_path, args.arch, count, holdout=args.holdout, seed=args.seed)

    def top1(net: nn.Module) -> float:
        with in_implementation(net, "dense"):
            return evaluate(net, images.evaluation(Batching(250)), torch.device("cpu")).top1

    rows: list[dict[str, Any]] = [{"setting": "dense", "plain": top1(dense)}]
    print(f"dense: {rows[0]['plain']:.2f}", flush=True)
    for text, setting in zip(args.settings, settings, strict=True):
        rows.append({"setting": text})
        for way, seconds, net in _ways(args, dense, setting, unlabelled):
            rows[-1] |= {way: top1(net), f"{way}_seconds": seconds}
            print(f"{text}: {way} {rows[-1][way]:.2f} ({seconds:.0f} s)", flush=True)
    ways = [way for way in WAYS if way in rows[-1]]
    shown = [[row["setting"], *(f"{row[way]:.2f}" if way in row else "" for way in ways)] for row in rows]
    print(table(("top-1 in percent", *ways), shown))
    if args.json:
        figures = {"images": len(images), "unlabelled": len(unlabelled), "arguments": vars(args), "rows": rows}
        write_json(args.json, figures)


def _ways(
    args: argparse.Namespace, dense: nn.Module, setting: Mapping[str, Any], unlabelled: Images
) -> Iterator[tuple[str, float, nn.Module]]:
    """Yield the networks of a setting by :data:`WAYS`, and the seconds that its last step took."""
    options: dict[str, Any] = {"arch": args.arch, "seed": args.seed, **setting}
    begin = time.perf_counter()
    net, _ = nd.compress(dense, **options)
    yield WAYS[0], time.perf_counter() - begin, net
    begin = time.perf_counter()
    net, spec = nd.compress(dense, **options, calibration=unlabelled[: args.calibration_images])
    yield WAYS[1], time.perf_counter() - begin, net
    if args.reconstruct:
        begin = time.perf_counter()
        training = {"epochs": args.reconstruct, "batch_size": args.batch_size, "lr": args.lr, "amp": args.amp}
        images = unlabelled[: args.reconstruct_images]
        net, _ = nd.reconstruct(net, spec, dense, images, **training, seed=args.seed)
        yield WAYS[2], time.perf_counter() - begin, net


if __name__ == "__main__":
    sys.exit(main())
