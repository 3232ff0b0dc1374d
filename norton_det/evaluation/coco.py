"""COCO evaluation: AP and AR of results, computed by pycocotools, faster-coco-eval or hotcoco."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from norton_det.data.coco.checks import check_annotations, check_results, raise_errors
from norton_det.data.coco.checks.annotations import INDEXING
from norton_det.data.coco.checks.fields import are_coordinates
from norton_det.data.coco.checks.objects import SIGMAS
from norton_det.data.coco.checks.results import FIELD
from norton_det.data.coco.labels import BACKGROUND, category_name, class_names
from norton_det.errors import DataError, expect_choice
from norton_det.evaluation.backends import BACKENDS
from norton_det.evaluation.coco_results import Result
from norton_det.evaluation.keypoint_sigmas import sigmas_of
from norton_det.evaluation.limits import limit_of, warn_of_coco_limit
from norton_det.evaluation.summary import (
    CLASSES,
    MAIN_LINES,
    METRICS,
    Line,
    Metrics,
    check_thresholds,
    format_metrics,
    lines_of,
    metric_names,
    of_class,
    summarise,
)

__all__ = [
    "BACKENDS",
    "CLASSES",
    "MAIN_LINES",
    "METRICS",
    "CocoEvaluator",
    "Metrics",
    "evaluate_results",
    "format_metrics",
    "metric_names",
]

_COMMON = (
    *(*INDEXING, "objects of the background", "duplicate image ids", "duplicate category ids"),
    *("unknown categories", "wrong areas", "wrong iscrowd"),
)
_POINTS = ("wrong keypoint names", "wrong keypoint sigmas", "wrong keypoints")
_TRUTH_CHECKS = {
    "bbox": (*_COMMON, "malformed boxes", "negative boxes"),
    "segm": (*_COMMON, "objects without mask", "broken masks"),
    "keypoints": (*_COMMON, "malformed boxes", "categories of different keypoints", *_POINTS),
}
"""Errors of annotations for which pycocotools would fail, hang or return wrong metrics, by kind."""


class CocoEvaluator:
    """Evaluates results against the annotations of a data set, as often as needed.

    The figures are those of pycocotools for results of the evaluated kind alone. They differ from a plain call of
    pycocotools in one case: if results with masks or keypoints contain boxes as well, as those of a detector do,
    ``COCO.loadRes`` computes the area of a result from its box, also in the evaluation of "segm", where the area of the
    mask decides here. Of the metrics, only those by size (APs, APm, APl, ARs, ARm, ARl) depend on it.

    Data for which pycocotools would silently return wrong metrics are corrected in a copy (annotation ids that are 0 or
    occur twice, ``num_keypoints`` that differs from the number of visible keypoints, empty results) or refused. If
    images have more objects of a class than the limit of detections, a warning says so.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations. It is not changed.
        kinds: the kinds among "bbox", "segm" and "keypoints" that are evaluated.
        backend: "pycocotools", the reference, "faster" (faster-coco-eval) or "hotcoco".
        name: name of the annotations in messages: their file.
        max_detections: number of detections of a class in an image that are considered, the last of pycocotools'
            ``maxDets``; None: COCO's, 100 for boxes and masks and 20 for keypoints. AR100 is then named accordingly.
        iou_thresholds: thresholds of IoU, increasing, of which AP and AR are the means, and which have lines of their
            own; None: COCO's, 0.5 to 0.95.

    Raises:
        DataError: the annotations have errors; see :mod:`norton_det.data.coco.checks`.
        UsageError: an unknown kind, an unknown or missing backend, ``max_detections`` of at most 10, or thresholds that
            are none.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.coco import CocoEvaluator
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=2, size=64)
        ...     data = CocoDataset(f"{folder}/shapes", "val")
        >>> results = [{**annotation, "score": 1.0} for annotation in data.coco.dataset["annotations"]]
        >>> metrics = CocoEvaluator(data.coco, ["bbox"]).evaluate(results)
        >>> round(metrics["bbox"]["AP50"], 3)
        1.0
    """

    def __init__(
        self,
        coco: Any,
        kinds: Sequence[str],
        *,
        backend: str = "pycocotools",
        name: str | Path = "annotations",
        max_detections: int | None = None,
        iou_thresholds: Sequence[float] | None = None,
    ) -> None:
        for kind in kinds:
            expect_choice("kind", kind, METRICS)
        check_thresholds(iou_thresholds)
        self._thresholds = iou_thresholds
        self._limits = {kind: limit_of(kind, max_detections) for kind in kinds}
        self._new_coco, self._new_evaluation = BACKENDS[backend]()
        self._content = coco.dataset
        _check_ids(coco.dataset, backend, name)
        self._truths = {kind: self._indexed(_truth(coco.dataset, kind, name)) for kind in kinds}
        warn_of_coco_limit(self._truths, self._limits, name)

    def evaluate(self, results: Sequence[Result], *, per_class: bool = False, name: str | Path = "results") -> Metrics:
        """Return the COCO metrics of results.

        Args:
            results: results in COCO's format; an empty list if nothing is detected.
            per_class: add the metrics of each class under ``classes``, by the name of the class.
            name: name of the results in messages: their file.

        Returns:
            For each kind the metrics of pycocotools' summary by name, 0 to 1; None for a metric without ground truth.

        Raises:
            DataError: the results have errors or do not fit the annotations; see :mod:`norton_det.data.coco.checks`.
        """
        self.check(results, name)
        with contextlib.redirect_stdout(io.StringIO()):
            return {kind: self._evaluate(results, kind, per_class) for kind in self._truths}

    def check(self, results: Sequence[Result], name: str | Path = "results") -> None:
        """Check that results can be evaluated.

        Args:
            results: results in COCO's format.
            name: name of the results in messages: their file.

        Raises:
            DataError: the results have errors or do not fit the annotations; see :mod:`norton_det.data.coco.checks`.
        """
        raise_errors(check_results(self._content, results, kinds=list(self._truths)), name)

    def match(self, results: Sequence[Result], kind: str, *, iou: float | None = None) -> Any:
        """Match checked results with the objects of the annotations, image by image.

        Args:
            results: results that :meth:`check` accepts.
            kind: one of the evaluated kinds.
            iou: match at this threshold alone, objects of all sizes; None: at all thresholds and for each size.

        Returns:
            The backend's ``COCOeval`` after ``evaluate()``; its ``params`` have the limit of detections.
        """
        truth = self._truths[kind]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self._new_evaluation(truth, self._detections(results, kind), kind)
            evaluation.params.catIds = sorted(truth.cats)
            if kind == "keypoints":
                evaluation.params.kpt_oks_sigmas = sigmas_of(truth.cats.values(), evaluation.params.kpt_oks_sigmas)
            evaluation.params.maxDets = [*evaluation.params.maxDets[:-1], self._limits[kind]]
            if self._thresholds is not None:
                evaluation.params.iouThrs = np.array(self._thresholds)
            if iou is not None:
                evaluation.params.iouThrs = np.array([iou])
                evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.evaluate()
        return evaluation

    def lines(self, kind: str) -> dict[str, Line]:
        """Return the metrics of a kind by name, with what each is the mean of."""
        return lines_of(kind, self._limits[kind], self._thresholds)

    def _evaluate(self, results: Sequence[Result], kind: str, per_class: bool) -> dict[str, Any]:
        evaluation, lines = self.match(results, kind), self.lines(kind)
        evaluation.accumulate()
        arrays, params = evaluation.eval, evaluation.params
        metrics: dict[str, Any] = dict(summarise(arrays, params, lines))
        if per_class:
            names = class_names(self._truths[kind].cats.values())
            parts = (of_class(arrays, k) for k in range(len(names)))
            metrics[CLASSES] = {
                name: summarise(part, params, lines) for name, part in zip(names.values(), parts, strict=True)
            }
        return metrics

    def _detections(self, results: Sequence[Result], kind: str) -> Any:
        # If a result has a box, loadRes computes its area from the box, so each kind is loaded without the others.
        fields, truth = ("image_id", "category_id", "score", FIELD[kind]), self._truths[kind]
        rows = [{name: result[name] for name in fields} for result in results]
        if not rows:
            return self._indexed({**truth.dataset, "annotations": []})
        if kind == "segm":
            for row in rows:
                row["segmentation"] = truth.annToRLE(row)  # of polygons and uncompressed run lengths, too
        return truth.loadRes(rows)

    def _indexed(self, content: dict[str, Any]) -> Any:
        coco = self._new_coco()
        coco.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def evaluate_results(
    coco: Any,
    results: Sequence[Result],
    kinds: Sequence[str],
    *,
    backend: str = "pycocotools",
    per_class: bool = False,
    max_detections: int | None = None,
) -> Metrics:
    """Return the COCO metrics of results, computed by a new :class:`CocoEvaluator`.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations. It is not changed.
        results: results in COCO's format; an empty list if nothing is detected.
        kinds: the kinds among "bbox", "segm" and "keypoints" that are evaluated.
        backend: "pycocotools" or "faster".
        per_class: add the metrics of each class.
        max_detections: number of detections of a class in an image that are considered; None: COCO's.

    Returns:
        The metrics as returned by :meth:`CocoEvaluator.evaluate`.

    Raises:
        DataError: the annotations or results have errors or do not fit.
        UsageError: an unknown kind or backend, or ``max_detections`` of at most 10.
    """
    evaluator = CocoEvaluator(coco, kinds, backend=backend, max_detections=max_detections)
    return evaluator.evaluate(results, per_class=per_class)


def _check_ids(content: Mapping[str, Any], backend: str, name: str | Path) -> None:
    """Refuse image and category ids that the other backends do not take, for which pycocotools is right."""
    ids = (entry.get("id") for part in ("images", "categories") for entry in content.get(part) or ())
    other = next((number for number in ids if not isinstance(number, int)), None) if backend != "pycocotools" else None
    if other is not None:
        raise DataError(
            f"{name}: id {other!r} is not a whole number; backend {backend} takes no other, expected pycocotools"
        )


def _truth(content: Mapping[str, Any], kind: str, name: str | Path) -> dict[str, Any]:
    """Return a copy of annotations that pycocotools evaluates correctly, of what is checked and read alone.

    pycocotools copies all else, however deep it is, and hotcoco refuses some of it.
    """
    raise_errors(check_annotations(content, masks=kind == "segm", only=_TRUTH_CHECKS[kind]), name)
    more = ("keypoints", SIGMAS) if kind == "keypoints" else ()
    categories: list[dict[str, Any]] = [
        {"id": c["id"], "name": category_name(c), **_part(c, more)}
        for c in content["categories"]
        if category_name(c) != BACKGROUND
    ]
    if kind == "keypoints":
        categories = [c for c in categories if c.get("keypoints")]
    if not categories:
        lacking = "has keypoints" if kind == "keypoints" else "is a class"
        raise DataError(f"{name}: no category {lacking}; expected one to evaluate {kind}")
    evaluated = {c["id"] for c in categories}
    annotations: list[dict[str, Any]] = []
    for annotation in content["annotations"]:
        if annotation["category_id"] in evaluated:
            new_id = len(annotations) + 1  # pycocotools takes 0 for unmatched and needs distinct ids
            row = _part(annotation, ("image_id", "category_id", "area", FIELD[kind]))
            row |= {"id": new_id, "iscrowd": int(annotation.get("iscrowd", 0))}
            if are_coordinates(annotation.get("bbox"), 4):
                row["bbox"] = annotation["bbox"]
            if kind == "keypoints":
                row["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
            annotations.append(row)
    images = [_part(image, ("id", "file_name", "width", "height")) for image in content["images"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def _part(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}
