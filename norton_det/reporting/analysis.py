"""The analysis of a run's detections on its validation images, of which pictures and page are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from norton_det.evaluation.at_threshold import SizeGroup, confusion_matrix, found_by_size
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.coco_results import Result, kinds_of_results
from norton_det.evaluation.error_split import ErrorSplit, split_errors
from norton_det.evaluation.matches import Matches, match_results
from norton_det.evaluation.precision_recall import Curve, OperatingPoint, best_thresholds, class_curves


@dataclass(frozen=True)
class Analysis:
    """What a detector finds, at an IoU of 0.5.

    Attributes:
        name: name of the detector.
        metrics: its COCO metrics.
        matches: its detections and the objects.
        curves: precision and recall of each class.
        best: the point with the best F1 of all classes together.
        best_of_classes: the same of each class.
        errors: the error split; None for keypoints.
        confusion: the confusion matrix at the threshold of ``best``.
        sizes: objects that are found at it, by size.
    """

    name: str
    metrics: Mapping[str, float | None]
    matches: Matches
    curves: Mapping[str, Curve]
    best: OperatingPoint
    best_of_classes: Mapping[str, OperatingPoint]
    errors: ErrorSplit | None
    confusion: Any
    sizes: Sequence[SizeGroup]

    @property
    def threshold(self) -> float:
        """Threshold of the best F1; infinite if nothing is detected, or there is nothing to detect."""
        return np.inf if self.best.threshold is None else self.best.threshold

    @property
    def title(self) -> str:
        """Name and threshold."""
        return self.name if self.best.threshold is None else f"{self.name}, score ≥ {self.threshold:.2f}"


def analyse(
    coco: Any, results: Mapping[str, Sequence[Result]], annotations: str | Path, max_detections: int | None = None
) -> dict[str, dict[str, Analysis]]:
    """Analyse the results of detectors on the same images.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations.
        results: results of each detector, by its name.
        annotations: name of the annotations in messages: their file.
        max_detections: limit of detections of a class in an image; None: COCO's.

    Returns:
        The analyses by kind ("bbox", and "segm" or "keypoints" if all have them) and name.

    Raises:
        DataError: the annotations or results have errors or do not fit.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.reporting.analysis import analyse
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=2, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> right = [{**annotation, "score": 1.0} for annotation in coco.dataset["annotations"]]
        >>> analyse(coco, {"perfect": right}, "annotations")["segm"]["perfect"].best.f1
        1.0
    """
    of_each = [kinds_of_results(rows) for rows in results.values() if rows] or [("bbox",)]
    kinds = [kind for kind in of_each[0] if all(kind in others for others in of_each)]
    evaluator = CocoEvaluator(coco, kinds, name=annotations, max_detections=max_detections)
    analyses: dict[str, dict[str, Analysis]] = {kind: {} for kind in kinds}
    for name, rows in results.items():
        metrics = evaluator.evaluate(rows, name=name)
        for kind in kinds:
            analyses[kind][name] = _analyse(name, metrics[kind], match_results(evaluator, rows, kind))
    return analyses


def _analyse(name: str, metrics: Mapping[str, Any], matches: Matches) -> Analysis:
    best, of_classes = best_thresholds(matches)
    threshold = np.inf if best.threshold is None else best.threshold
    return Analysis(
        name,
        metrics,
        matches,
        class_curves(matches),
        best,
        of_classes,
        None if matches.kind == "keypoints" else split_errors(matches),
        confusion_matrix(matches, threshold),
        found_by_size(matches, threshold),
    )
