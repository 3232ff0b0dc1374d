"""COCO evaluation: from results to AP and AR, with pycocotools or faster-coco-eval."""

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from norton_det.data.coco.checks import check_annotations, check_results, raise_errors
from norton_det.data.coco.checks.results import FIELD
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.coco_results import Result
from norton_det.registry import Registry

Metrics = dict[str, dict[str, Any]]

_BOX_LINES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRICS = {
    "bbox": _BOX_LINES,
    "segm": _BOX_LINES,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}
"""Kinds of results, and the lines of pycocotools' summary for each."""
MAIN_LINES = {kind: tuple(line for line in lines if line[-1] not in "sml") for kind, lines in METRICS.items()}
"""The lines that are for objects of all sizes."""
CLASSES = "classes"
"""Where the figures of single classes are, beside those lines."""
_DEFAULT_SIGMA = 0.05
_COMMON = ("incomplete entries", "duplicate image ids", "duplicate category ids", "wrong areas")
_TRUTH_CHECKS = {
    "bbox": (*_COMMON, "malformed boxes", "negative boxes"),
    "segm": (*_COMMON, "objects without mask", "broken masks"),
    "keypoints": (*_COMMON, "malformed boxes", "categories of different keypoints", "wrong keypoints"),
}
"""What is refused in annotations, by kind: pycocotools would fail, hang, or give figures that are wrong."""

BACKENDS: Registry[Callable[[], tuple[Any, Any]]] = Registry("backend")
"""By name, what returns the classes ``COCO`` and ``COCOeval`` of a library."""


class CocoEvaluator:
    """Evaluates results on all images of an annotation file, as often as is wanted.

    Where pycocotools goes wrong in silence, a corrected copy is evaluated (annotation ids that are 0 or come twice,
    ``num_keypoints`` that is not the number of visible ones, nothing found at all) or the data is refused.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations; it is not changed.
        kinds: of "bbox", "segm", "keypoints".
        backend: "pycocotools", the reference, or "faster" (faster-coco-eval).
        name: what the annotations are called in messages: their file.

    Raises:
        DataError: the annotations are damaged: see :mod:`norton_det.data.coco.checks`.
        UsageError: an unknown kind, an unknown backend, or one that is not installed.
    """

    def __init__(
        self, coco: Any, kinds: Sequence[str], *, backend: str = "pycocotools", name: str | Path = "annotations"
    ) -> None:
        if unknown := [kind for kind in kinds if kind not in METRICS]:
            raise UsageError(f"unknown kind {unknown[0]!r}; expected one of: {', '.join(METRICS)}")
        self._new_coco, self._new_evaluation = BACKENDS[backend]()
        self._content = coco.dataset
        self._truths = {kind: self._indexed(_truth(coco.dataset, kind, name)) for kind in kinds}

    def evaluate(self, results: Sequence[Result], *, per_class: bool = False, name: str | Path = "results") -> Metrics:
        """Return the COCO figures of results.

        Args:
            results: in COCO's results format; empty is nothing found.
            per_class: add the figures of each class under ``classes``, by the class's name.
            name: what the results are called in messages: their file.

        Returns:
            For each kind the lines of pycocotools' summary by name; None where there is no ground truth.

        Raises:
            DataError: the results do not fit the annotations, or are damaged: see :mod:`norton_det.data.coco.checks`.
        """
        raise_errors(check_results(self._content, results, kinds=list(self._truths)), name)
        with contextlib.redirect_stdout(io.StringIO()):
            return {kind: self._evaluate(results, kind, per_class) for kind in self._truths}

    def _evaluate(self, results: Sequence[Result], kind: str, per_class: bool) -> dict[str, Any]:
        truth = self._truths[kind]
        evaluation = self._new_evaluation(truth, self._detections(results, kind), kind)
        evaluation.params.catIds = sorted(truth.cats)
        if kind == "keypoints":
            evaluation.params.kpt_oks_sigmas = _sigmas(truth, evaluation.params.kpt_oks_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        figures: dict[str, Any] = _lines(evaluation, kind)
        if per_class:
            figures[CLASSES] = _classes(evaluation, truth, kind)
        return figures

    def _detections(self, results: Sequence[Result], kind: str) -> Any:
        # loadRes takes an object's area from its box wherever there is one: it must see one kind alone.
        fields, truth = ("image_id", "category_id", "score", FIELD[kind]), self._truths[kind]
        rows = [{name: result[name] for name in fields} for result in results]
        if not rows:
            return self._indexed({**truth.dataset, "annotations": []})
        if kind == "segm":
            for row in rows:
                row["segmentation"] = truth.annToRLE(row)  # polygons and uncompressed counts as well
        return truth.loadRes(rows)

    def _indexed(self, content: dict[str, Any]) -> Any:
        coco = self._new_coco()
        coco.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def evaluate_results(
    coco: Any, results: Sequence[Result], kinds: Sequence[str], *, backend: str = "pycocotools", per_class: bool = False
) -> Metrics:
    """Return the COCO figures of results at once, with a :class:`CocoEvaluator`.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations; it is not changed.
        results: in COCO's results format; empty is nothing found.
        kinds: of "bbox", "segm", "keypoints".
        backend: "pycocotools" or "faster".
        per_class: add the figures of each class.

    Returns:
        As :meth:`CocoEvaluator.evaluate`.

    Raises:
        DataError: annotations or results are damaged or do not fit.
        UsageError: an unknown kind or backend.
    """
    return CocoEvaluator(coco, kinds, backend=backend).evaluate(results, per_class=per_class)


def _truth(content: Mapping[str, Any], kind: str, name: str | Path) -> dict[str, Any]:
    """Return a copy of annotations that pycocotools reads rightly."""
    raise_errors(check_annotations(content, masks=kind == "segm", only=_TRUTH_CHECKS[kind]), name)
    categories = [c for c in content["categories"] if kind != "keypoints" or "keypoints" in c]
    if not categories:
        raise DataError(f"{name}: no category has keypoints; expected one to evaluate {kind}")
    evaluated = {c["id"] for c in categories}
    annotations: list[dict[str, Any]] = []
    for annotation in content["annotations"]:
        if annotation["category_id"] in evaluated:
            number = len(annotations) + 1  # 0 would stand for unmatched, and an id that comes twice for the last one
            row = {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd") or 0)}
            if kind == "keypoints":
                row["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
            annotations.append(row)
    return {"images": content["images"], "annotations": annotations, "categories": categories}


def _sigmas(truth: Any, persons: Any) -> Any:
    """Return COCO's tolerances for its 17 keypoints of persons, and an even one for any other number."""
    count = len(next(iter(truth.cats.values()))["keypoints"])
    return persons if count == len(persons) else np.full(count, _DEFAULT_SIGMA)


def _lines(evaluation: Any, kind: str) -> dict[str, float | None]:
    evaluation.summarize()
    return {name: None if v == -1 else float(v) for name, v in zip(METRICS[kind], evaluation.stats, strict=True)}


def _classes(evaluation: Any, truth: Any, kind: str) -> dict[str, dict[str, float | None]]:
    """Return the same lines for each class: precision and recall have the class in their third and second place."""
    whole, figures = evaluation.eval, {}
    for k, number in enumerate(evaluation.params.catIds):
        evaluation.eval = {
            **whole,
            "precision": whole["precision"][:, :, k : k + 1],
            "recall": whole["recall"][:, k : k + 1],
        }
        name = str(truth.cats[number].get("name", number))
        figures[f"{name} {number}" if name in figures else name] = _lines(evaluation, kind)
    return figures


def _pycocotools() -> tuple[Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _faster() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UsageError("backend 'faster' needs faster-coco-eval: install norton-det[fast]") from None
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    return COCO, COCOeval_faster


BACKENDS.register("pycocotools", _pycocotools)
BACKENDS.register("faster", _faster)


def format_metrics(metrics: Metrics) -> str:
    """Return a table of all figures but those of single classes, a line each."""
    lines = []
    for kind, figures in metrics.items():
        lines.append(f"IoU metric: {kind}")
        for name in METRICS[kind]:
            value = figures[name]
            lines.append(f" {name:<6} {'no ground truth' if value is None else f'{value:.3f}'}")
    return "\n".join(lines)
