"""The metrics of COCO's summary: their names, what they are the mean of, and their values as text.

Shapes of the arrays of an evaluation: T thresholds of IoU, R levels of recall, K classes, A ranges of areas, M limits
of detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.errors import UsageError

Array = NDArray[Any]
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
_AREAS = {"s": "small", "m": "medium", "l": "large"}
_COCO_THRESHOLDS = (0.5, 0.75)  # those with lines of their own


@dataclass(frozen=True)
class Line:
    """What a metric is the mean of.

    Attributes:
        array: "precision" or "recall".
        iou: threshold of IoU; None: all of them.
        area: name of a range of areas.
        limit: position among the limits of detections.
    """

    array: str
    iou: float | None = None
    area: str = "all"
    limit: int = -1

    def value(self, arrays: Mapping[str, Any], params: Any) -> float | None:
        """Return the mean of an array's values; None without ground truth.

        Args:
            arrays: ``precision`` (T, R, K, A, M) and ``recall`` (T, K, A, M) of an evaluation; -1 where there is no
                ground truth.
            params: its parameters: thresholds and ranges of areas.
        """
        values = np.asarray(arrays[self.array])[..., list(params.areaRngLbl).index(self.area), self.limit]
        if self.iou is not None:
            values = values[np.isclose(params.iouThrs, self.iou)]
        values = values[values > -1]
        return float(np.mean(values)) if values.size else None


def lines_of(kind: str, limit: int, thresholds: Sequence[float] | None = None) -> dict[str, Line]:
    """Return the metrics of a kind by name, in the order of pycocotools' summary.

    Args:
        kind: "bbox", "segm" or "keypoints".
        limit: number of detections of a class in an image that are considered; AR100 is named accordingly.
        thresholds: thresholds of IoU; each has lines of its own in place of COCO's 0.5 and 0.75. None: COCO's.

    Example:
        >>> from norton_det.evaluation.summary import lines_of
        >>> list(lines_of("bbox", 300, [0.5, 0.625]))
        ['AP', 'AP50', 'AP62.5', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR300', 'ARs', 'ARm', 'ARl']
    """
    shown = _COCO_THRESHOLDS if thresholds is None else thresholds
    ious = {f"{100 * threshold:.6g}": threshold for threshold in shown}
    sizes = [name for name in _AREAS if f"AP{name}" in METRICS[kind]]
    lines = {"AP": Line("precision")}
    lines |= {f"AP{name}": Line("precision", iou=iou) for name, iou in ious.items()}
    lines |= {f"AP{size}": Line("precision", area=_AREAS[size]) for size in sizes}
    if kind == "keypoints":
        lines |= {"AR": Line("recall")} | {f"AR{name}": Line("recall", iou=iou) for name, iou in ious.items()}
    else:
        lines |= {f"AR{count}": Line("recall", limit=i) for i, count in enumerate((1, 10, limit))}
    return lines | {f"AR{size}": Line("recall", area=_AREAS[size]) for size in sizes}


def check_thresholds(thresholds: Sequence[float] | None) -> None:
    """Check thresholds of IoU.

    Raises:
        UsageError: there are none, they do not increase, or one is not above 0 and at most 1.

    Example:
        >>> from norton_det.evaluation.summary import check_thresholds
        >>> check_thresholds([0.5, 75])
        Traceback (most recent call last):
        norton_det.errors.UsageError: iou_thresholds is 0.5, 75; expected increasing numbers above 0 and at most 1
    """
    if thresholds is None:
        return
    increasing = all(a < b for a, b in zip([0, *thresholds], [*thresholds, np.inf], strict=True))
    if not thresholds or not increasing or thresholds[-1] > 1:
        given = ", ".join(f"{threshold:g}" for threshold in thresholds) or "empty"
        raise UsageError(f"iou_thresholds is {given}; expected increasing numbers above 0 and at most 1")


def summarise(arrays: Mapping[str, Any], params: Any, lines: Mapping[str, Line]) -> dict[str, float | None]:
    """Return the metrics of all classes: those of pycocotools' summary, 0 to 1; None without ground truth."""
    return {name: line.value(arrays, params) for name, line in lines.items()}


def of_class(arrays: Mapping[str, Any], k: int) -> dict[str, Array]:
    """Return the part of the arrays of an evaluation that is the k-th class's."""
    precision, recall = (np.asarray(arrays[name]) for name in ("precision", "recall"))
    return {"precision": precision[:, :, k : k + 1], "recall": recall[:, k : k + 1]}


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics of a kind, in the order of pycocotools' summary.

    Example:
        >>> from norton_det.evaluation.summary import metric_names
        >>> metric_names({"AP": 0.5, "AP50": None, "classes": {"cat": {"AP": 0.5}}})
        ['AP', 'AP50']
    """
    return [name for name, value in metrics.items() if not isinstance(value, Mapping)]


def format_metrics(metrics: Metrics) -> str:
    """Return the metrics as text, one in a line, without those of single classes.

    Example:
        >>> from norton_det.evaluation.summary import METRICS, format_metrics
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
