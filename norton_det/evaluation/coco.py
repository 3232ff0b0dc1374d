"""COCO evaluation: AP and AR of results, computed by pycocotools or faster-coco-eval."""

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from norton_det.data.coco.checks import check_annotations, check_results, raise_errors
from norton_det.data.coco.checks.results import FIELD
from norton_det.data.coco.labels import BACKGROUND, category_name
from norton_det.errors import DataError, UsageError, expect_choice
from norton_det.evaluation.coco_results import Result
from norton_det.evaluation.keypoint_sigmas import sigmas_of
from norton_det.evaluation.limits import COCO_LIMITS, limit_of, warn_of_coco_limit
from norton_det.registry import Registry

Metrics = dict[str, dict[str, Any]]

_BOX_LINES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRICS = {
    "bbox": _BOX_LINES,
    "segm": _BOX_LINES,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}
"""Kinds of results, and the metrics of each kind in the order of pycocotools' summary."""
MAIN_LINES = {kind: tuple(line for line in lines if line[-1] not in "sml") for kind, lines in METRICS.items()}
"""The metrics for objects of all sizes."""
CLASSES = "classes"
"""Key of the metrics of single classes, beside the names of the metrics."""
_COMMON = (
    *("incomplete entries", "objects of the background", "duplicate image ids", "duplicate category ids"),
    *("wrong areas", "wrong iscrowd"),
)
_POINTS = ("wrong keypoint names", "wrong keypoints")
_TRUTH_CHECKS = {
    "bbox": (*_COMMON, "malformed boxes", "negative boxes"),
    "segm": (*_COMMON, "objects without mask", "broken masks"),
    "keypoints": (*_COMMON, "malformed boxes", "categories of different keypoints", *_POINTS),
}
"""Errors of annotations for which pycocotools would fail, hang or return wrong metrics, by kind."""

BACKENDS: Registry[Callable[[], tuple[Any, Any]]] = Registry("backend")
"""Functions that return the classes ``COCO`` and ``COCOeval`` of a library, by name."""


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
        backend: "pycocotools", the reference, or "faster" (faster-coco-eval).
        name: name of the annotations in messages: their file.
        max_detections: number of detections of a class in an image that are considered, the last of pycocotools'
            ``maxDets``; None: COCO's, 100 for boxes and masks and 20 for keypoints. AR100 is then named accordingly.

    Raises:
        DataError: the annotations have errors; see :mod:`norton_det.data.coco.checks`.
        UsageError: an unknown kind, an unknown or missing backend, or ``max_detections`` of at most 10.

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
    ) -> None:
        for kind in kinds:
            expect_choice("kind", kind, METRICS)
        self._limits = {kind: limit_of(kind, max_detections) for kind in kinds}
        self._new_coco, self._new_evaluation = BACKENDS[backend]()
        self._content = coco.dataset
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
            if iou is not None:
                evaluation.params.iouThrs = np.array([iou])
                evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.evaluate()
        return evaluation

    def _evaluate(self, results: Sequence[Result], kind: str, per_class: bool) -> dict[str, Any]:
        evaluation, limit = self.match(results, kind), self._limits[kind]
        evaluation.accumulate()
        # summarize() looks for the positions of COCO's limits.
        evaluation.params.maxDets = [*evaluation.params.maxDets[:-1], COCO_LIMITS[kind]]
        names = [f"AR{limit}" if name == "AR100" else name for name in METRICS[kind]]
        metrics: dict[str, Any] = _metrics(evaluation, names)
        if per_class:
            metrics[CLASSES] = _class_metrics(evaluation, self._truths[kind], names)
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


def _truth(content: Mapping[str, Any], kind: str, name: str | Path) -> dict[str, Any]:
    """Return a copy of annotations that pycocotools evaluates correctly."""
    raise_errors(check_annotations(content, masks=kind == "segm", only=_TRUTH_CHECKS[kind]), name)
    categories = [c for c in content["categories"] if category_name(c) != BACKGROUND]
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
            row = {**annotation, "id": new_id, "iscrowd": int(annotation.get("iscrowd", 0))}
            if kind == "keypoints":
                row["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
            annotations.append(row)
    return {"images": content["images"], "annotations": annotations, "categories": categories}


def _metrics(evaluation: Any, names: Sequence[str]) -> dict[str, float | None]:
    evaluation.summarize()
    return {name: None if v == -1 else float(v) for name, v in zip(names, evaluation.stats, strict=True)}


def _class_metrics(evaluation: Any, truth: Any, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return the metrics of each class: the third axis of precision and the second axis of recall are the classes."""
    complete, metrics = evaluation.eval, {}
    for k, category in enumerate(evaluation.params.catIds):
        precision, recall = complete["precision"][:, :, k : k + 1], complete["recall"][:, k : k + 1]
        evaluation.eval = {**complete, "precision": precision, "recall": recall}
        name = category_name(truth.cats[category])
        metrics[f"{name} {category}" if name in metrics else name] = _metrics(evaluation, names)
    return metrics


def _pycocotools() -> tuple[Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _faster() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UsageError("backend 'faster' needs faster-coco-eval: pip install norton-det[fast]") from None
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    return COCO, COCOeval_faster


BACKENDS.register("pycocotools", _pycocotools)
BACKENDS.register("faster", _faster)


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics of a kind, in the order of pycocotools' summary."""
    return [name for name in metrics if name != CLASSES]


def format_metrics(metrics: Metrics) -> str:
    """Return the metrics as text, one in a line, without those of single classes.

    Example:
        >>> from norton_det.evaluation.coco import METRICS, format_metrics
        >>> names = METRICS["keypoints"]
        >>> print(format_metrics({"keypoints": dict.fromkeys(names, 0.5)}).splitlines()[1])
         AP     0.500
    """
    lines = []
    for kind, values in metrics.items():
        lines.append(f"IoU metric: {kind}")
        for name in metric_names(values):
            value = values[name]
            lines.append(f" {name:<6} {'no ground truth' if value is None else f'{value:.3f}'}")
    return "\n".join(lines)
