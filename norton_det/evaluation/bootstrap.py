"""AP of resampled data sets: what pycocotools gives if each image occurs as often as it was drawn.

The detections are matched with the objects once, image by image, by pycocotools. A draw only changes how often each
image counts, so that the precisions of all draws are cumulative sums along the detections in the order of their scores.
Shapes: I images, B draws, T thresholds of IoU, N detections and H hits of a class, L metrics, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from norton_det.data.coco.labels import class_names
from norton_det.evaluation.summary import Line

Array = NDArray[Any]
_EXACT = 2**24  # integers up to it are float32 numbers


def draw_images(images: int, draws: int, seed: int) -> Tensor:
    """Return how often each image occurs in each draw of ``images`` images with replacement.

    Returns:
        (I, 1 + B) int64; in the first column each image occurs once.

    Example:
        >>> from norton_det.evaluation.bootstrap import draw_images
        >>> counts = draw_images(5, 3, seed=0)
        >>> counts[:, 0].tolist(), counts.sum(0).tolist()
        ([1, 1, 1, 1, 1], [5, 5, 5, 5])
    """
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(draws)]
    return torch.from_numpy(np.stack([np.ones(images, np.int64), *drawn], axis=1))


class MatchedResults:
    """Results of one kind, matched with the objects of a data set.

    Args:
        evaluation: pycocotools' ``COCOeval`` after ``evaluate()``.
        lines: the metrics by name; those of recall are left out.

    Attributes:
        metrics: names of the metrics (L).
        classes: names of the classes (K).
    """

    def __init__(self, evaluation: Any, lines: Mapping[str, Line]) -> None:
        params = evaluation.params
        self._lines = {name: line for name, line in lines.items() if line.array == "precision"}
        self.metrics = list(self._lines)
        self.classes = list(class_names(evaluation.cocoGt.cats[k] for k in params.catIds).values())
        self._thresholds, self._areas = params.iouThrs, params.areaRngLbl
        self._recalls = torch.from_numpy(params.recThrs)
        self._rankings = [
            [_Ranking.read(evaluation, k, area) for area in range(len(self._areas))] for k in range(len(self.classes))
        ]

    def average_precisions(self, counts: Tensor) -> Tensor:
        """Return the AP of data sets in which image i, in the order of the ids, occurs ``counts[i, b]`` times in a row.

        Args:
            counts: (I, B) integers.

        Returns:
            (L, K, B) float64; NaN where there is no object.
        """
        weights = _Weights(counts, max((ranking.size for row in self._rankings for ranking in row), default=0))
        result = torch.full((len(self.metrics), len(self.classes), counts.shape[1]), torch.nan, dtype=torch.float64)
        for k, row in enumerate(self._rankings):
            for area, ranking in zip(self._areas, row, strict=True):
                precisions = ranking.average_precisions(weights, self._recalls)  # (T, B)
                for number, line in enumerate(self._lines.values()):
                    if line.area == area:
                        chosen = slice(None) if line.iou is None else np.isclose(self._thresholds, line.iou)
                        result[number, k] = precisions[chosen].mean(0)
        return result


class _Weights:
    """How often images count in each draw, as floating-point numbers that hold all sums exactly.

    Attributes:
        images: I.
        copies: the largest count.
        rows: ((1 + copies) * I, B): the counts, then for each c from 1 to ``copies`` whether an image occurs c times.
    """

    def __init__(self, counts: Tensor, size: int) -> None:
        self.images, self.copies = len(counts), int(counts.max())
        dtype = torch.float32 if size * self.copies < _EXACT else torch.float64
        self.rows = torch.cat([counts, *(counts >= c for c in range(1, self.copies + 1))]).to(dtype)


@dataclass(frozen=True)
class _Ranking:
    """The detections of a class in a range of areas, by their scores, and the numbers of objects.

    Attributes:
        images: (N,) index of the image of each detection.
        runs: (N,) number of the run that each detection belongs to: neighbours of one image with one score.
        hits: (T, N) whether it is an object that is to be found.
        counted: (T, N) whether it is such an object or a false alarm; else it is ignored.
        objects: (I,) number of objects in each image that are to be found.
    """

    images: Array
    runs: Array
    hits: Array
    counted: Array
    objects: Array

    @classmethod
    def read(cls, evaluation: Any, category: int, area: int) -> "_Ranking":
        """Read the matches of a class and a range of areas, given by their positions in the parameters."""
        params = evaluation.params
        count = len(params.imgIds)
        start = (category * len(params.areaRng) + area) * count
        found = [(i, e) for i, e in enumerate(evaluation.evalImgs[start : start + count]) if e is not None]
        objects = np.zeros(count, np.int64)
        for i, entry in found:
            objects[i] = np.count_nonzero(entry["gtIgnore"] == 0)
        scores = np.concatenate([np.zeros(0), *(entry["dtScores"] for _, entry in found)])
        order = np.argsort(-scores, kind="stable")  # as pycocotools: equal scores in the order of the images
        images = np.concatenate([np.zeros(0, int), *(np.full(len(e["dtScores"]), i) for i, e in found)])[order]
        none = np.zeros((len(params.iouThrs), 0), bool)
        matched, ignored = (
            np.concatenate([none, *(entry[name].astype(bool) for _, entry in found)], axis=1)[:, order]
            for name in ("dtMatches", "dtIgnore")
        )
        begins = (np.diff(images, prepend=-1) != 0) | (np.diff(scores[order], prepend=np.inf) != 0)
        return cls(images, np.cumsum(begins) - 1, matched & ~ignored, ~ignored, objects)

    @property
    def size(self) -> int:
        """A bound of all counts in the data set itself."""
        return max(len(self.images), int(self.objects.sum()))

    def average_precisions(self, weights: _Weights, recalls: Tensor) -> Tensor:
        """Return the AP at each threshold, (T, B) float64; NaN where there is no object."""
        counts = torch.from_numpy(self.objects).to(weights.rows) @ weights.rows[: weights.images]
        objects = counts.double()
        if not self.objects.any():
            return torch.full((len(self.hits), len(objects)), torch.nan, dtype=torch.float64)
        rows = [
            _average_precision(*self._entries(t, weights), weights.rows, objects, recalls)
            for t in range(len(self.hits))
        ]
        return torch.where(objects > 0, torch.stack(rows), torch.nan)

    def _entries(self, threshold: int, weights: _Weights) -> tuple[Tensor, Tensor]:
        """Return the row of the weights of each entry of the ranking, (E,), and the positions of the hits, (H,).

        An entry is a detection with all its copies. Copies of an image lie one behind the other, so that where hits
        and false alarms of one image have the same score, their copies alternate: there an entry is a single copy.
        """
        counted = self.counted[threshold]
        hits, images, runs = self.hits[threshold, counted], self.images[counted], self.runs[counted]
        copies = np.zeros(len(images), np.int64)
        total, true = np.bincount(runs), np.bincount(runs, hits)
        mixed = ((true > 0) & (true < total))[runs]
        if mixed.any():
            each = np.where(mixed, weights.copies, 1)
            entries = np.repeat(np.arange(len(images)), each)
            copies = np.arange(len(entries)) - np.repeat(np.cumsum(each) - each, each) + mixed[entries]
            order = np.lexsort((entries, copies, runs[entries]))
            entries, copies = entries[order], copies[order]
            hits, images = hits[entries], images[entries]
        return torch.from_numpy(copies * weights.images + images), torch.from_numpy(np.flatnonzero(hits))


def _average_precision(entries: Tensor, hits: Tensor, weights: Tensor, objects: Tensor, recalls: Tensor) -> Tensor:
    """Return the AP of each draw, (B,): the mean of the precision at the levels of recall.

    The precision is interpolated: at a level it is the largest one at this or a higher recall. That is the precision at
    a hit, so that only hits are looked at, and for each of them the number of detections up to it.
    """
    if not len(hits):
        return torch.zeros_like(objects)
    begins = torch.cat([hits.new_zeros(1), hits[:-1] + 1])
    detections = embedding_bag(entries[: int(hits[-1]) + 1], weights, begins, mode="sum").double().cumsum(0)  # (H, B)
    found = weights[entries[hits]].double().cumsum(0)
    precision = found / (detections + np.spacing(1))  # pycocotools avoids 0 / 0 so
    interpolated = precision.flip(0).cummax(0).values.flip(0)
    reached = torch.searchsorted(recalls, found / objects, right=True)  # number of levels
    new = reached.diff(dim=0, prepend=torch.zeros_like(reached[:1]))
    precisions: Tensor = (interpolated * new).sum(0) / len(recalls)
    return precisions
