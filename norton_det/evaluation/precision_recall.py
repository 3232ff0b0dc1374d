"""Precision and recall: curves, average precision, and the score threshold with the best F1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.evaluation.matches import Matches

Array = NDArray[Any]
RECALLS = np.linspace(0, 1, 101)
"""The levels of recall of COCO's average precision."""


@dataclass(frozen=True)
class Curve:
    """Precision and recall of the detections whose score is at least a threshold, for each score that occurs.

    Detections with one score are above a threshold or below it together, so that they are one point.

    Attributes:
        scores: (P,) thresholds, from high to low.
        precision: (P,) fraction of the detections that are matched.
        recall: (P,) fraction of the objects that are found; NaN without objects.
        f1: (P,) harmonic mean of both.
        objects: number of objects.
    """

    scores: Array
    precision: Array
    recall: Array
    f1: Array
    objects: int

    def best(self) -> "OperatingPoint":
        """Return the point with the best F1; of several, the one with the highest threshold."""
        if not self.objects:
            return OperatingPoint(None, None, None, None, 0)
        if not len(self.scores):
            return OperatingPoint(None, None, 0.0, 0.0, self.objects)
        i = int(np.argmax(self.f1))
        threshold, precision, recall = (float(values[i]) for values in (self.scores, self.precision, self.recall))
        return OperatingPoint(threshold, precision, recall, float(self.f1[i]), self.objects)


@dataclass(frozen=True)
class OperatingPoint:
    """What a detector does at a score threshold.

    Attributes:
        threshold: detections with at least this score count; None: there are no detections.
        precision: fraction of them that are matched; None: there are none.
        recall: fraction of the objects that are found; None: there are no objects.
        f1: harmonic mean of both; None: there are no objects.
        objects: number of objects.
    """

    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    objects: int


def curve(scores: Array, hits: Array, objects: int) -> Curve:
    """Return the curve of a set of detections.

    Args:
        scores: (N,) scores in any order.
        hits: (N,) bool: the detection is matched.
        objects: number of objects that are to be found.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.precision_recall import curve
        >>> one = curve(np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, True, False, True]), 4)
        >>> one.scores.tolist(), one.recall.tolist()
        ([0.9, 0.8, 0.3], [0.25, 0.5, 0.75])
        >>> best = one.best()
        >>> best.threshold, best.precision, best.f1
        (0.3, 0.75, 0.75)
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)[: len(scores)]  # of the detections with one score
    true = np.cumsum(hits[order])[last]
    count = (np.flatnonzero(last) + 1).astype(float)
    recall = true / objects if objects else np.full(len(true), np.nan)
    f1 = 2 * true / (count + objects)  # from the counts, so that equal values are equal numbers
    return Curve(scores[order][last], true / count, recall, f1, objects)


def class_curves(matches: Matches) -> dict[str, Curve]:
    """Return the curve of each class, by its name."""
    return {
        name: curve(matches.scores[matches.labels == k], matches.hits[matches.labels == k], int(matches.objects[k]))
        for k, name in enumerate(matches.classes)
    }


def best_thresholds(matches: Matches) -> tuple[OperatingPoint, Mapping[str, OperatingPoint]]:
    """Return the point with the best F1 of all detections together, with one threshold, and that of each class.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.coco import CocoEvaluator
        >>> from norton_det.evaluation.matches import match_results
        >>> from norton_det.evaluation.precision_recall import best_thresholds
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=2, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> results = [{**annotation, "score": 0.7} for annotation in coco.dataset["annotations"]]
        >>> overall, classes = best_thresholds(match_results(CocoEvaluator(coco, ["bbox"]), results, "bbox"))
        >>> overall.threshold, overall.f1
        (0.7, 1.0)
    """
    whole = curve(matches.scores, matches.hits, int(matches.objects.sum())).best()
    return whole, {name: one.best() for name, one in class_curves(matches).items()}


def average_precision(scores: Array, hits: Array, objects: int) -> float:
    """Return COCO's average precision: the mean of the interpolated precision at 101 levels of recall.

    Args:
        scores: (N,) scores; among equal ones the first counts first, as in pycocotools.
        hits: (N,) bool: the detection is matched.
        objects: number of objects, at least 1.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.precision_recall import average_precision
        >>> average_precision(np.array([0.9, 0.8]), np.array([True, True]), 2)
        1.0
    """
    true = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = true / np.arange(1, len(true) + 1)
    interpolated = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(interpolated[np.searchsorted(true / objects, RECALLS)].mean())
