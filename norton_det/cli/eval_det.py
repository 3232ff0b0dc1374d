"""Evaluate a detector or COCO results of any program: AP and AR; or compare two of them.

Examples:
  norton-det eval-det --checkpoint out/checkpoint.pth --data-path coco
  norton-det eval-det --results results.json --annotations coco/annotations/instances_val2017.json --per-class
  norton-det eval-det --checkpoint out/checkpoint.pth --data-path coco --errors --f1 --output metrics.md
  norton-det eval-det --compare dense.pth results.json --data-path coco --output comparison.json
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.cli.common import Parser
from norton_det.cli.data_options import FOLDER, add_dataset, add_division, add_keypoint_sigmas, division_of
from norton_det.cli.eval_output import add_formats, check_formats, show_comparison, show_metrics
from norton_det.cli.numbers import FRACTION, whole
from norton_det.cli.options import (
    add_device,
    add_image_size,
    add_max_detections,
    add_workers,
)
from norton_det.data import Batching, CocoDataset, evaluation_batches, find_split, read_coco
from norton_det.data.coco.checks import check_results, raise_errors
from norton_det.data.coco.checks.findings import ERROR
from norton_det.data.coco.labels import Labels
from norton_det.data.coco.layouts import Split
from norton_det.data.coco.shapes import check_scalable
from norton_det.errors import UsageError
from norton_det.evaluation.coco import BACKENDS, CLASSES, METRICS, CocoEvaluator, Metrics
from norton_det.evaluation.coco_results import RESULTS_FILE, Result, kinds_of_results, read_results, write_results
from norton_det.evaluation.compare import DRAWS, check_draws, compare_results
from norton_det.evaluation.error_split import dict_of, split_errors
from norton_det.evaluation.keypoint_sigmas import set_sigmas
from norton_det.evaluation.limits import warn_of_detector_limit
from norton_det.evaluation.matches import match_results
from norton_det.evaluation.precision_recall import best_thresholds
from norton_det.evaluation.predict import predict
from norton_det.evaluation.subset import first_images, results_of
from norton_det.evaluation.tables import ERRORS, F1
from norton_det.files import check_writable, write_json
from norton_det.inference.load import open_detector
from norton_det.models.tasks import kinds_of
from norton_det.runtime.run_folder import has_run
from norton_det.storage import make_folder


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("detections")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="training checkpoint, or file of norton-det compress")
    source.add_argument("--results", metavar="FILE", help="results in COCO's format, from any program")
    text = "two of these (.json: results): differences of AP, with intervals from a paired bootstrap over the images"
    source.add_argument("--compare", nargs=2, metavar=("A", "B"), help=text)
    add = group.add_argument
    add_image_size(group)
    add_device(group)
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", metavar="DIR", help=FOLDER)
    add_dataset(group)
    add("--annotations", metavar="FILE", help="COCO annotations (default: those of --data-path and --dataset)")
    add("--images", metavar="DIR", help="the images (default: those of --data-path)")
    add_division(group)
    add_keypoint_sigmas(group)
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
    add("--iou-thresholds", nargs="+", type=FRACTION, metavar="T", help="of IoU (default: COCO's, 0.5 to 0.95)")
    add("--limit", type=whole(1), metavar="N", help="evaluate the first N images alone (default: all)")
    add("--errors", action="store_true", help="what each kind of error costs in AP50: the error split of TIDE")
    add("--f1", action="store_true", help="precision, recall and F1 at the score threshold with the best F1, IoU 0.5")
    add("--draws", default=DRAWS, type=whole(1, 1_000_000), metavar="N", help="of the bootstrap of --compare")
    add("--seed", default=0, type=whole(0), metavar="N", help="of the bootstrap of --compare")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--print-freq", default=100, type=whole(1), metavar="N", help="images between log lines")
    add("--output-dir", metavar="DIR", help=f"write metrics.json there, and {RESULTS_FILE} of --checkpoint")
    add_formats(group)


def run(args: argparse.Namespace) -> None:
    """Evaluate or compare, and print."""
    check_formats(args)
    if args.output_dir and not args.compare:
        if has_run(args.output_dir):
            raise UsageError(f"--output-dir {args.output_dir}: is the folder of a training; expected another one")
        make_folder(args.output_dir)
        check_writable(args.output_dir)
    for flag in ("compare", "errors", "f1"):
        if getattr(args, flag) and args.backend != "pycocotools":
            raise UsageError(f"--backend {args.backend} does not keep what --{flag} needs; expected pycocotools")
    for flag in ("errors", "f1"):
        if getattr(args, flag) and args.compare:
            raise UsageError(f"--{flag}: is not for --compare; expected --checkpoint or --results")
    detectors = [path for path in (args.checkpoint, *(args.compare or ())) if path and not _is_results(path)]
    for name in ("annotations", "images") if detectors else ("annotations",):
        if getattr(args, name) is None and args.data_path is None:
            raise UsageError(f"neither --{name} nor --data-path is given; expected one")
    named = {"images": args.images, "annotations": args.annotations}
    found = find_split(args.data_path, "val", args.dataset, **named, **division_of(args))
    (_compare if args.compare else _evaluate)(args, found)


def _evaluate(args: argparse.Namespace, found: Split) -> None:
    if args.checkpoint:
        data = _data(args, found)
        detector = _read_detector(args, args.checkpoint, data)
        evaluator = _evaluator(args, data.coco, args.kinds or kinds_of(detector[0]), found.annotations)
        results, name = _detect(args, *detector, data), "results"
    else:
        coco, results, name = _read(args, found), read_results(args.results), args.results
        first = first_images(coco, args.limit)
        results = results_of(results, coco, first)
        evaluator = _evaluator(args, first, args.kinds or kinds_of_results(results) or ["bbox"], found.annotations)
    metrics = evaluator.evaluate(results, per_class=args.per_class, name=name)
    _add_analyses(args, metrics, evaluator, results)
    if args.output_dir:
        folder = Path(args.output_dir)
        if args.checkpoint:
            write_results(folder, results)
        write_json(folder / "metrics.json", metrics)
    show_metrics(args, metrics)


def _add_analyses(
    args: argparse.Namespace, metrics: Metrics, evaluator: CocoEvaluator, results: Sequence[Result]
) -> None:
    """Add the error split and the best thresholds to the metrics of each kind."""
    for kind, values in metrics.items() if args.errors or args.f1 else ():
        matches = match_results(evaluator, results, kind)
        if args.errors and kind != "keypoints":
            values[ERRORS] = dict_of(split_errors(matches))
        if args.f1:
            overall, classes = best_thresholds(matches)
            values[F1] = {"all": asdict(overall), CLASSES: {name: asdict(point) for name, point in classes.items()}}


def _compare(args: argparse.Namespace, found: Split) -> None:
    """Compare two detectors. What can be refused is refused before the first one runs."""
    if args.output_dir:
        raise UsageError(f"--output-dir {args.output_dir}: is not for --compare; expected --output")
    check_draws(args.draws, args.seed)
    data = None if all(map(_is_results, args.compare)) else _data(args, found)
    coco = _read(args, found) if data is None else data.coco
    sources = [_source(args, path, coco, data) for path in args.compare]
    first = first_images(coco, args.limit)
    a, b = (results_of(results(), coco, first) for results in sources)
    comparison = compare_results(
        first,
        a,
        b,
        args.kinds,
        names=tuple(args.compare),
        annotations=found.annotations,
        max_detections=args.max_detections,
        iou_thresholds=args.iou_thresholds,
        draws=args.draws,
        seed=args.seed,
        print_freq=args.print_freq,
    )
    show_comparison(args, comparison)


def _is_results(path: str) -> bool:
    return Path(path).suffix.lower() == ".json"


def _source(args: argparse.Namespace, path: str, coco: Any, data: Any) -> Callable[[], list[Result]]:
    """Return a function that returns the results of a file: those in it, or those of the detector in it."""
    if _is_results(path):
        results = read_results(path)
        raise_errors([f for f in check_results(coco.dataset, results) if f.severity == ERROR], path)
        return lambda: results
    detector = _read_detector(args, path, data)
    return lambda: _detect(args, *detector, data)


def _evaluator(args: argparse.Namespace, coco: Any, kinds: Sequence[str], annotations: str | Path) -> CocoEvaluator:
    if args.errors and set(kinds) == {"keypoints"}:
        raise UsageError("--errors: keypoints have no error split; expected --kinds bbox or segm")
    limits = {"max_detections": args.max_detections, "iou_thresholds": args.iou_thresholds}
    return CocoEvaluator(coco, kinds, backend=args.backend, name=annotations, **limits)


def _data(args: argparse.Namespace, found: Split) -> CocoDataset:
    files: dict[str, Any] = {"images": found.images, "annotations": found.annotations}
    data = CocoDataset(None, "val", args.dataset, **files, **division_of(args))
    _set_sigmas(args, data.coco, found)
    if args.limit is not None:
        data.coco = first_images(data.coco, args.limit)
        data.ids = data.ids[: args.limit]
    return data


def _read(args: argparse.Namespace, found: Split) -> Any:
    coco = read_coco(found.annotations, found.part)
    _set_sigmas(args, coco, found)
    return coco


def _set_sigmas(args: argparse.Namespace, coco: Any, found: Split) -> None:
    if args.keypoint_sigmas:
        set_sigmas(coco, args.keypoint_sigmas, found.annotations)


def _read_detector(args: argparse.Namespace, path: str, data: CocoDataset) -> tuple[nn.Module, Labels]:
    """Return the detector in a file, and its labels with the category ids of the data."""
    model, spec = open_detector(path, args.device, min_size=args.min_size, max_size=args.max_size)
    data.match(spec, path)
    check_scalable(model, data)
    return model, data.labels


def _detect(args: argparse.Namespace, model: nn.Module, labels: Labels, data: CocoDataset) -> list[Result]:
    """Run a detector and return its results."""
    warn_of_detector_limit(model, data.coco.dataset, data.annotations, args.max_detections)
    batches = evaluation_batches(data, Batching(1), workers=args.workers)
    return predict(model, batches, torch.device(args.device), labels=labels, print_freq=args.print_freq)
