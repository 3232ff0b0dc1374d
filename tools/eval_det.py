"""Evaluate a detector on a COCO folder: AP and AR of every standard line."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

import norton_det as nd
from norton_det.checkpoint import write_json
from norton_det.cli import Parser, command
from norton_det.data import CocoDataset, collate
from norton_det.engine import evaluate_results, format_metrics, kinds_of, predict
from norton_det.errors import UsageError


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="training checkpoint, or file of compress.py")
    add("--data-path", required=True, metavar="DIR", help="COCO folder: val2017/ annotations/")
    add("--dataset", default="coco", help="coco (instances) or coco_kp (person keypoints)")
    add("--min-size", type=int, help="length to which an image's shorter side is scaled (default: as trained)")
    add("--max-size", type=int, help="bound on the longer side (default: as trained)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("-j", "--workers", default=4, type=int, help="processes that load data")
    add("--print-freq", default=100, type=int, help="images between log lines")
    add("--output-dir", metavar="DIR", help="write coco_instances_results.json and metrics.json there")
    add("--json", action="store_true", help="print JSON rather than a table; null is no ground truth")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, evaluate and print."""
    args = _parser().parse_args(argv)
    model: Any
    model, spec = nd.load(args.checkpoint, args.device)
    if not isinstance(model, GeneralizedRCNN):
        raise UsageError(f"--checkpoint {args.checkpoint}: is a {spec.arch}; expected a detector")
    val = CocoDataset(args.data_path, "val", args.dataset)
    if args.min_size is not None:
        model.transform.min_size = (args.min_size,)
    if args.max_size is not None:
        model.transform.max_size = args.max_size
    batches = DataLoader(val, batch_size=1, num_workers=args.workers, collate_fn=collate)
    results = predict(model, batches, torch.device(args.device), print_freq=args.print_freq)
    metrics = evaluate_results(val.coco, results, kinds_of(model))
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "coco_instances_results.json", results)
        write_json(folder / "metrics.json", metrics)
    print(json.dumps(metrics) if args.json else format_metrics(metrics))


if __name__ == "__main__":
    sys.exit(main())
