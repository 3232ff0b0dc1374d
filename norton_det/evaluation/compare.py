"""Comparison of two detectors: differences of AP, with intervals from a paired bootstrap over the images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.data.coco.checks.results import FIELD
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.bootstrap import MatchedResults, draw_images
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.coco_results import Result, kinds_of_results
from norton_det.formatting import table
from norton_det.runtime.progress import ProgressLog

logger = logging.getLogger(__name__)

DRAWS = 1000
LEVEL = 0.95
"""Fraction of the draws whose difference is within the interval."""
MIN_DRAWS = 40
"""Fewer draws have none in the 2.5 % at each end."""
_BLOCK = 64  # draws that are computed at a time


@dataclass(frozen=True)
class Difference:
    """A metric of two detectors.

    Attributes:
        a: the first detector's, 0 to 1; None: no ground truth.
        b: the second detector's.
        difference: b - a.
        interval: the percentile interval of the difference, at ``LEVEL``; None: fewer than 40 draws have ground truth.
        draws: number of draws with ground truth, of which the interval is.
    """

    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    draws: int


@dataclass(frozen=True)
class Comparison:
    """The comparison of two detectors A and B on the same images.

    Attributes:
        names: what A and B are: their files.
        images: number of images.
        draws: number of bootstrap draws.
        seed: seed of the draws.
        max_detections: limit of detections of a class in an image; None: COCO's.
        metrics: the differences of each kind, by the name of the metric.
        classes: the same for each class, by its name.
        left_out: kinds that only one of the detectors has, with its name.
        level: fraction of the draws whose difference is within the interval.
    """

    names: tuple[str, str]
    images: int
    draws: int
    seed: int
    max_detections: int | None
    metrics: Mapping[str, Mapping[str, Difference]]
    classes: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    left_out: Mapping[str, str]
    level: float = LEVEL


def compare_results(
    coco: Any,
    a: Sequence[Result],
    b: Sequence[Result],
    kinds: Sequence[str] | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    annotations: str | Path = "annotations",
    max_detections: int | None = None,
    iou_thresholds: Sequence[float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    print_freq: int = 100,
) -> Comparison:
    """Compare the AP of two detectors, given their results on the same images.

    The interval of a difference is a paired bootstrap's: as many images as there are, with and without objects, are
    drawn with replacement, ``draws`` times, and the difference is computed on each draw, the same for both. A draw has
    the figures that pycocotools gives for a data set in which an image that is drawn k times occurs k times in a row.
    The interval says how much the difference depends on which images were taken. It does not contain what another
    training of the same networks would change.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations. It is not changed.
        a: results of the first detector in COCO's format.
        b: results of the second one, with the same category ids.
        kinds: the kinds among "bbox", "segm" and "keypoints"; None: all that both have. What is left out is logged.
        names: names of the results in messages: their files.
        annotations: name of the annotations in messages: their file.
        max_detections: number of detections of a class in an image that are considered; None: COCO's.
        iou_thresholds: thresholds of IoU, as for :class:`~norton_det.evaluation.coco.CocoEvaluator`.
        draws: number of draws.
        seed: seed of the draws.
        print_freq: number of blocks of 64 draws between log lines.

    Returns:
        The differences b - a, overall, by size and for each class.

    Raises:
        DataError: the annotations or results have errors or do not fit; there is no kind that both have.
        UsageError: an unknown kind, wrong limits or thresholds, fewer than 40 draws, or a negative seed.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.compare import compare_results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=4, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> a = [{**annotation, "score": 1.0} for annotation in coco.dataset["annotations"]]
        >>> comparison = compare_results(coco, a, a, ["bbox"])
        >>> comparison.metrics["bbox"]["AP"].interval
        (0.0, 0.0)
    """
    check_draws(draws, seed)
    if not coco.imgs:
        raise DataError(f"{annotations}: has no images; expected some to draw from")
    common, left_out = (list(dict.fromkeys(kinds)), {}) if kinds is not None else _common_kinds((a, b), names)
    limits: dict[str, Any] = {"max_detections": max_detections, "iou_thresholds": iou_thresholds}
    evaluator = CocoEvaluator(coco, common, name=annotations, **limits)
    for results, name in zip((a, b), names, strict=True):
        evaluator.check(results, name)
    counts = draw_images(len(coco.imgs), draws, seed)
    metrics, classes = {}, {}
    for kind in common:
        sides = [MatchedResults(evaluator.match(results, kind), evaluator.lines(kind)) for results in (a, b)]
        blocks = ProgressLog(f"Bootstrap {kind}:", print_freq).follow(counts.split(_BLOCK, dim=1))
        parts = [torch.stack([side.average_precisions(block) for side in sides]) for block in blocks]
        figures = torch.cat(parts, dim=-1)  # (2, L, K, 1 + draws)
        names_of = sides[0].metrics
        metrics[kind] = _differences(names_of, figures.nanmean(2))
        classes[kind] = {name: _differences(names_of, figures[:, :, k]) for k, name in enumerate(sides[0].classes)}
    return Comparison(names, len(coco.imgs), draws, seed, max_detections, metrics, classes, left_out)


def check_draws(draws: int, seed: int) -> None:
    """Check the arguments of a bootstrap.

    Raises:
        UsageError: there are fewer than 40 draws, or the seed is negative.

    Example:
        >>> from norton_det.evaluation.compare import check_draws
        >>> check_draws(10, seed=0)
        Traceback (most recent call last):
        norton_det.errors.UsageError: draws is 10; expected at least 40, so that some are in the 2.5 % at each end
    """
    if draws < MIN_DRAWS:
        raise UsageError(f"draws is {draws}; expected at least {MIN_DRAWS}, so that some are in the 2.5 % at each end")
    if seed < 0:
        raise UsageError(f"seed is {seed}; expected at least 0")


def _common_kinds(results: Sequence[Sequence[Result]], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the kinds that both results have, and those that one of them has, with its name.

    A detector that detects nothing has whatever kinds the other one has.
    """
    first, second = (kinds_of_results(rows) if rows else None for rows in results)
    if first is None or second is None:
        return list(first or second or ["bbox"]), {}
    common, sides = [kind for kind in first if kind in second], list(zip(names, (first, second), strict=True))
    if not common:
        found = "; ".join(f"{name} has {', '.join(kinds) or 'none'}" for name, kinds in sides)
        raise DataError(f"no kind of results that both have: {found}; expected one of {', '.join(FIELD)}")
    left_out = {kind: name for name, kinds in sides for kind in kinds if kind not in common}
    for kind, name in left_out.items():
        logger.warning("Only %s has %s; it is left out of the comparison.", name, kind)
    return common, left_out


def _differences(names: Sequence[str], figures: Tensor) -> dict[str, Difference]:
    """Return the difference of each metric, given the figures (2, L, 1 + draws) on the data and on the draws."""
    return {name: _difference(*pair) for name, pair in zip(names, figures.unbind(1), strict=True)}


def _difference(a: Tensor, b: Tensor) -> Difference:
    drawn = (b - a)[1:]
    drawn = drawn[~drawn.isnan()]
    if a[0].isnan():
        return Difference(None, None, None, None, 0)
    interval = None
    if len(drawn) >= MIN_DRAWS:
        low, high = np.percentile(drawn.numpy(), [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
        interval = (low, high)
    return Difference(a[0].item(), b[0].item(), (b - a)[0].item(), interval, len(drawn))


def format_comparison(comparison: Comparison, *, per_class: bool = False) -> str:
    """Return a comparison as text: a table for each kind.

    Args:
        comparison: the comparison.
        per_class: add the AP of each class.

    Example:
        >>> from norton_det.evaluation.compare import Comparison, Difference, format_comparison
        >>> metrics = {"bbox": {"AP": Difference(0.5, 0.45, -0.05, (-0.0625, -0.03125), 1000)}}
        >>> print(format_comparison(Comparison(("a.json", "b.json"), 72, 1000, 0, None, metrics, {"bbox": {}}, {})))
        A: a.json
        B: b.json
        72 images, 1000 draws, seed 0
        <BLANKLINE>
        bbox        A      B    B - A     95 % interval
        ------  -----  -----  -------  ----------------
        AP      0.500  0.450   -0.050  -0.062 to -0.031
    """
    a, b = comparison.names
    parts = [f"A: {a}\nB: {b}\n{comparison.images} images, {comparison.draws} draws, seed {comparison.seed}"]
    for kind, metrics in comparison.metrics.items():
        classes = comparison.classes[kind] if per_class else {}
        rows = [*metrics.items(), *((f"AP of {name}", lines["AP"]) for name, lines in classes.items())]
        header = (kind, "A", "B", "B - A", f"{100 * comparison.level:.0f} % interval")
        parts.append(table(header, [(name, *_cells(difference)) for name, difference in rows]))
    return "\n\n".join(parts)


def _cells(difference: Difference) -> tuple[str, str, str, str]:
    if difference.a is None or difference.b is None or difference.difference is None:
        return "-", "-", "-", "no ground truth"
    interval = "too few draws" if difference.interval is None else "{:+.3f} to {:+.3f}".format(*difference.interval)
    return f"{difference.a:.3f}", f"{difference.b:.3f}", f"{difference.difference:+.3f}", interval
