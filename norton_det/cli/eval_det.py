"""Evaluate a detector, or any program's COCO results, against COCO annotations: AP and AR of every standard line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from norton_det.builders.load_detector import load_detector
from norton_det.cli.common import Parser, command
from norton_det.data import CocoDataset, annotation_file, collate, read_coco
from norton_det.data.coco.checks.results import FIELD
from norton_det.errors import UsageError
from norton_det.evaluation.coco import CLASSES, METRICS, CocoEvaluator, Metrics, format_metrics
from norton_det.evaluation.predict import predict
from norton_det.files import read_json, write_json
from norton_det.formatting import table
from norton_det.models.tasks import kinds_of


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="training checkpoint, or file of compress.py")
    source.add_argument("--results", metavar="FILE", help="results in COCO's format, from any program")
    add = parser.add_argument
    add("--data-path", metavar="DIR", help="COCO folder: val2017/ annotations/")
    add("--dataset", default="coco", help="coco (instances) or coco_kp (person keypoints)")
    add("--annotations", metavar="FILE", help="COCO annotations (default: those of --data-path and --dataset)")
    add("--images", metavar="DIR", help="the images (default: val2017/ of --data-path)")
    add("--kinds", nargs="+", metavar="KIND", help="bbox, segm, keypoints (default: all that were found)")
    add("--per-class", action="store_true", help="the figures of each class as well")
    add("--backend", default="pycocotools", help="pycocotools, or faster (faster-coco-eval)")
    add("--min-size", type=int, help="length to which an image's shorter side is scaled (default: as trained)")
    add("--max-size", type=int, help="bound on the longer side (default: as trained)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("-j", "--workers", default=4, type=int, help="processes that load data")
    add("--print-freq", default=100, type=int, help="images between log lines")
    add("--output-dir", metavar="DIR", help="write metrics.json there, and coco_instances_results.json of --checkpoint")
    add("--json", action="store_true", help="print JSON rather than a table; null is no ground truth")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, evaluate and print."""
    args = _parser().parse_args(argv)
    for name in ("annotations", "images") if args.checkpoint else ("annotations",):
        if getattr(args, name) is None and args.data_path is None:
            raise UsageError(f"--{name} or --data-path is needed")
    path = args.annotations or annotation_file(args.data_path, "val", args.dataset)
    if args.checkpoint:
        metrics, results = _detect(args, path)
    else:
        results = read_json(args.results, list, "a list of COCO results")
        found = [kind for kind, field in FIELD.items() if results and field in results[0]] or ["bbox"]
        evaluator = CocoEvaluator(read_coco(path), args.kinds or found, backend=args.backend, name=path)
        metrics = evaluator.evaluate(results, per_class=args.per_class, name=args.results)
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if args.checkpoint:
            write_json(folder / "coco_instances_results.json", results)
        write_json(folder / "metrics.json", metrics)
    if args.json:
        print(json.dumps(metrics))
    else:
        print(_class_tables(metrics) if args.per_class else format_metrics(metrics))


def _detect(args: argparse.Namespace, path: str | Path) -> tuple[Metrics, list[dict[str, Any]]]:
    """Run the detector; return its figures and its results."""
    model, _ = load_detector(args.checkpoint, args.device, min_size=args.min_size, max_size=args.max_size)
    data = CocoDataset(args.data_path, "val", args.dataset, images=args.images, annotations=path)
    evaluator = CocoEvaluator(data.coco, args.kinds or kinds_of(model), backend=args.backend, name=path)
    batches = DataLoader(data, batch_size=1, num_workers=args.workers, collate_fn=collate)
    results = predict(model, batches, torch.device(args.device), print_freq=args.print_freq)
    return evaluator.evaluate(results, per_class=args.per_class), results


def _class_tables(metrics: Metrics) -> str:
    """Return a table for each kind: a row for all classes, and one for each."""
    parts = []
    for kind, figures in metrics.items():
        rows = [
            (name, *("-" if row[line] is None else f"{row[line]:.3f}" for line in METRICS[kind]))
            for name, row in {"all": figures, **figures[CLASSES]}.items()
        ]
        parts.append(f"IoU metric: {kind} (-: no ground truth)\n{table(('class', *METRICS[kind]), rows)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
