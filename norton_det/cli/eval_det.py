"""Evaluate a detector, or COCO results of any program, against COCO annotations: AP and AR.

Examples:
  norton-det eval-det --checkpoint out/checkpoint.pth --data-path coco
  norton-det eval-det --results results.json --annotations coco/annotations/instances_val2017.json --per-class
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from norton_det.builders.load_detector import load_detector
from norton_det.cli.common import Parser
from norton_det.cli.options import add_device, add_image_size, add_max_detections, add_workers, check_minimum
from norton_det.data import CocoDataset, annotation_file, collate, read_coco
from norton_det.data.coco.checks.results import FIELD
from norton_det.data.coco.dataset import KINDS
from norton_det.errors import UsageError
from norton_det.evaluation.coco import BACKENDS, CLASSES, METRICS, CocoEvaluator, Metrics, format_metrics, metric_names
from norton_det.evaluation.coco_results import RESULTS_FILE, read_results, write_results
from norton_det.evaluation.limits import warn_of_detector_limit
from norton_det.evaluation.predict import predict
from norton_det.files import write_json
from norton_det.formatting import table
from norton_det.models.tasks import kinds_of


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("detections")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="training checkpoint, or file of norton-det compress")
    source.add_argument("--results", metavar="FILE", help="results in COCO's format, from any program")
    add = group.add_argument
    add_image_size(group)
    add_device(group)
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", metavar="DIR", help="COCO folder: val2017/ annotations/")
    add("--dataset", default="coco", choices=[*KINDS], metavar="NAME", help="instances or person keypoints")
    add("--annotations", metavar="FILE", help="COCO annotations (default: those of --data-path and --dataset)")
    add("--images", metavar="DIR", help="the images (default: val2017/ of --data-path)")
    add_workers(group)
    group = parser.add_argument_group("evaluation")
    add_max_detections(group)
    add = group.add_argument
    add("--kinds", nargs="+", choices=[*METRICS], metavar="KIND", help="what is evaluated (default: all results)")
    add("--per-class", action="store_true", help="the metrics of each class as well")
    add(
        "--backend",
        default="pycocotools",
        choices=[*BACKENDS],
        metavar="NAME",
        help="library; faster: faster-coco-eval",
    )
    add = parser.add_argument_group("output").add_argument
    add("--print-freq", default=100, type=int, metavar="N", help="images between log lines")
    add("--output-dir", metavar="DIR", help=f"write metrics.json there, and {RESULTS_FILE} of --checkpoint")
    add("--json", action="store_true", help="print JSON rather than a table; null is no ground truth")


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    check_minimum(args, workers=0, print_freq=1)
    for name in ("annotations", "images") if args.checkpoint else ("annotations",):
        if getattr(args, name) is None and args.data_path is None:
            raise UsageError(f"neither --{name} nor --data-path is given; expected one")
    annotations = args.annotations or annotation_file(args.data_path, "val", args.dataset)
    metrics, results = _detect(args, annotations) if args.checkpoint else (_evaluate(args, annotations), None)
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if results is not None:
            write_results(folder, results)
        write_json(folder / "metrics.json", metrics)
    if args.json:
        print(json.dumps(metrics))
    else:
        print(_class_tables(metrics) if args.per_class else format_metrics(metrics))


def _evaluate(args: argparse.Namespace, annotations: str | Path) -> Metrics:
    """Return the metrics of a results file."""
    results = read_results(args.results)
    present = [kind for kind, field in FIELD.items() if results and field in results[0]] or ["bbox"]
    evaluator = _evaluator(args, read_coco(annotations), args.kinds or present, annotations)
    return evaluator.evaluate(results, per_class=args.per_class, name=args.results)


def _evaluator(args: argparse.Namespace, coco: Any, kinds: Sequence[str], annotations: str | Path) -> CocoEvaluator:
    return CocoEvaluator(coco, kinds, backend=args.backend, name=annotations, max_detections=args.max_detections)


def _detect(args: argparse.Namespace, annotations: str | Path) -> tuple[Metrics, list[dict[str, Any]]]:
    """Run the detector; return its metrics and its results."""
    model, spec = load_detector(args.checkpoint, args.device, min_size=args.min_size, max_size=args.max_size)
    data = CocoDataset(args.data_path, "val", args.dataset, images=args.images, annotations=annotations)
    data.match(spec, args.checkpoint)
    evaluator = _evaluator(args, data.coco, args.kinds or kinds_of(model), annotations)
    warn_of_detector_limit(model, data.coco.dataset, annotations, args.max_detections)
    batches = DataLoader(data, batch_size=1, num_workers=args.workers, collate_fn=collate)
    results = predict(model, batches, torch.device(args.device), labels=data.labels, print_freq=args.print_freq)
    return evaluator.evaluate(results, per_class=args.per_class), results


def _class_tables(metrics: Metrics) -> str:
    """Return a table for each kind: a row for all classes, and one for each."""
    parts = []
    for kind, lines in metrics.items():
        rows = [
            (name, *("-" if row[line] is None else f"{row[line]:.3f}" for line in metric_names(lines)))
            for name, row in {"all": lines, **lines[CLASSES]}.items()
        ]
        parts.append(f"IoU metric: {kind} (-: no ground truth)\n{table(('class', *metric_names(lines)), rows)}")
    return "\n\n".join(parts)
