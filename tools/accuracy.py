"""Accuracy of compressed classifiers without any fine-tuning: as they are, and calibrated on unlabelled images.

A setting is a rank, or a rank and pruning rates: 2 or 7:[0.]+[0.18]*29 (rank 0 decomposes nothing). There may be a
rank for each layer: [0]*19+[5]*36:[0.]*30.

Example:
  --arch resnet56_cifar --weights resnet56.pt --data-path cifar10 --settings 1 2 3 "7:[0.]+[0.18]*29" --json rows.json
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

import norton_det as nd
from norton_det.checkpoint import write_json
from norton_det.cli import Parser, check_counts, command, rank_or_ranks, table
from norton_det.data.batching import Batching, hold_out
from norton_det.data.images import dataset_for, read_images
from norton_det.data.unlabelled import read_unlabelled
from norton_det.decompositions import in_form
from norton_det.engine.classify import evaluate
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, CLASSIFIERS
from norton_det.weights import initial_network


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arch", required=True, help=f"one of: {', '.join(CLASSIFIERS)}")
    add("--weights", required=True, help="state-dict file, or the name of torchvision's weights")
    add("--data-path", required=True, metavar="DIR", help="folder with the splits; calibration is on train/")
    add("--settings", required=True, nargs="+", metavar="RANK[:RATES]")
    add("--calibration-images", default=1024, type=int, help="(default: 1024)")
    add("--holdout", default=0, type=int, metavar="N", help="evaluate on the N training images that are held out")
    add("--seed", default=0, type=int, help="(default: 0)")
    add("--json", metavar="FILE", help="file to write the rows to")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, compress and evaluate each setting twice, print the table."""
    args = _parser().parse_args(argv)
    check_counts(args, calibration_images=1, holdout=0)
    if args.arch not in CLASSIFIERS:
        raise UsageError(f"--arch {args.arch}: expected one of: {', '.join(CLASSIFIERS)}")
    settings = [_setting(text) for text in args.settings]
    dense, _ = initial_network(args.arch, args.weights)
    dataset = dataset_for(ARCHITECTURES[args.arch].image_size)
    images = read_images(dataset, args.data_path, "train" if args.holdout else "val")
    images = images.subset(hold_out(len(images), args.holdout)[1]) if args.holdout else images
    calibration = read_unlabelled(args.data_path, args.arch, args.calibration_images, seed=args.seed)

    def top1(net: torch.nn.Module) -> float:
        with in_form(net, "dense"):
            return evaluate(net, images.evaluation(Batching(250)), torch.device("cpu")).top1

    rows: list[dict[str, Any]] = [{"setting": "dense", "plain": top1(dense)}]
    print(f"dense: {rows[0]['plain']:.2f}", flush=True)
    for text, (rank, rates) in zip(args.settings, settings, strict=True):
        options: dict[str, Any] = {"arch": args.arch, "rank": rank, "rates": rates, "seed": args.seed}
        plain, _ = nd.compress(dense, **options)
        start = time.perf_counter()
        calibrated, _ = nd.compress(dense, **options, calibration=calibration)
        seconds = time.perf_counter() - start
        rows.append({"setting": text, "plain": top1(plain), "calibrated": top1(calibrated), "seconds": seconds})
        print(f"{text}: plain {rows[-1]['plain']:.2f}, calibrated {rows[-1]['calibrated']:.2f}", flush=True)
    shown = [
        [row["setting"], *(f"{row[key]:.2f}" if key in row else "" for key in ("plain", "calibrated"))] for row in rows
    ]
    print(table(("setting", "top-1 plain", "calibrated"), shown))
    if args.json:
        write_json(args.json, {"images": len(images), "calibration_images": len(calibration), "rows": rows})


def _setting(text: str) -> tuple[int | str | None, str | None]:
    rank, _, rates = text.partition(":")
    if not (rank.isdigit() or rank.startswith("[")):
        raise UsageError(f"--settings {text!r}: expected a rank, or a rank and rates as 7:[0.]+[0.18]*29")
    return rank_or_ranks(rank) or None, rates or None


if __name__ == "__main__":
    sys.exit(main())
