"""The error split of TIDE (Bolya et al., ECCV 2020): what kinds of errors a detector makes, and what each costs in AP.

A false alarm is explained by the objects that it overlaps. F is the foreground threshold of IoU (0.5), B the background
threshold (0.1); the first kind that applies is taken:

- localisation: it overlaps an object of its class with an IoU from B to F;
- classification: it overlaps an object of another class with at least F;
- duplicate: it overlaps an object of its class with at least F, which a detection with a higher score has taken;
- background: it overlaps every object with at most B;
- both: anything else, that is an object of another class with an IoU from B to F.

An object is missed if no detection takes it and no error of classification or localisation is about it.

What a kind costs is how much AP would rise, at the foreground threshold, if an oracle corrected these errors alone: it
corrects the class or the box of the detection with the highest score of those that are about one object which no
detection takes, and removes the others; it removes duplicates, background and both; and it takes missed objects from
the number of objects that are to be found.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.errors import UsageError
from norton_det.evaluation.matches import FOREGROUND, ImageMatches, Matches
from norton_det.evaluation.precision_recall import average_precision

Array = NDArray[Any]
BACKGROUND = 0.1
"""IoU up to which a detection overlaps nothing."""
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""The kinds of errors, in the order of the paper."""
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _ON_BACKGROUND = range(5)
_NONE = -1


@dataclass(frozen=True)
class ErrorSplit:
    """The errors of a detector by kind.

    Attributes:
        ap: AP at the foreground threshold, 0 to 1; None: no objects.
        counts: number of errors of each kind.
        costs: how much AP would rise without the errors of each kind; None: no objects.
    """

    ap: float | None
    counts: Mapping[str, int]
    costs: Mapping[str, float | None]


def split_errors(matches: Matches) -> ErrorSplit:
    """Return the errors by kind.

    Args:
        matches: matches of boxes or masks at the foreground threshold.

    Raises:
        UsageError: the matches are those of keypoints, for which the kinds are not defined.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.coco import CocoEvaluator
        >>> from norton_det.evaluation.error_split import split_errors
        >>> from norton_det.evaluation.matches import match_results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=2, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> right = [{**annotation, "score": 0.9} for annotation in coco.dataset["annotations"]]
        >>> twice = right + [{**result, "score": 0.5} for result in right]
        >>> split = split_errors(match_results(CocoEvaluator(coco, ["bbox"]), twice, "bbox"))
        >>> split.counts["duplicate"] == len(right), split.costs["duplicate"]
        (True, 0.0)
    """
    if matches.kind == "keypoints":
        raise UsageError("kind is keypoints; the error split is that of bbox or segm")
    state = _State(matches)
    before, after = state.ap(), [state.corrected(kind).ap() for kind in range(len(KINDS))]
    counts = [int(np.count_nonzero(state.errors == kind)) for kind in range(len(KINDS) - 1)]
    counts.append(int(state.missed.sum()))
    costs = [None if before is None or ap is None else ap - before for ap in after]
    return ErrorSplit(before, dict(zip(KINDS, counts, strict=True)), dict(zip(KINDS, costs, strict=True)))


class _State:
    """Detections (N) of a data set as the average precision reads them, and their errors.

    Attributes:
        errors: (N,) kind of error of each detection; -1: it is matched.
        missed: (K,) number of missed objects of each class.
    """

    def __init__(self, matches: Matches) -> None:
        self.scores, self.labels, self.hits = matches.scores, matches.labels, matches.hits
        self.objects = matches.objects
        self._classes = np.flatnonzero(matches.objects)  # of which AP is the mean
        offset, errors, about, object_classes, free = 0, [], [], [], []
        for image in matches.images:
            kinds, numbers = _explain(image)
            errors.append(kinds)
            about.append(np.where(numbers >= 0, numbers + offset, _NONE))
            object_classes.append(image.object_classes)
            free.append(~np.isin(np.arange(len(image.objects)), image.matched))
            offset += len(image.objects)
        none = np.zeros(0, int)
        self.errors, self._about = np.concatenate([none, *errors]), np.concatenate([none, *about])
        self._object_classes = np.concatenate([none, *object_classes])
        self._free = np.concatenate([none.astype(bool), *free])
        correctable = np.isin(self.errors, (_CLASSIFICATION, _LOCALISATION))
        lost = self._free & ~np.isin(np.arange(offset), self._about[correctable])
        self.missed = np.bincount(self._object_classes[lost], minlength=len(self.objects))

    def ap(self) -> float | None:
        """Return the mean AP of the classes with objects."""
        values = []
        for k in self._classes:
            own = self.labels == k
            if self.objects[k]:
                values.append(average_precision(self.scores[own], self.hits[own], int(self.objects[k])))
            elif own.any():  # all objects were missed ones: nothing but false alarms is left
                values.append(0.0)
        return float(np.mean(values)) if values else None

    def corrected(self, kind: int) -> "_State":
        """Return the state without the errors of a kind."""
        state = object.__new__(_State)
        state.__dict__.update(self.__dict__)
        if kind == KINDS.index("missed"):
            state.objects = self.objects - self.missed
            return state
        wrong = self.errors == kind
        right = np.zeros_like(wrong)
        if kind in (_CLASSIFICATION, _LOCALISATION):
            right[self._best_of_each_object(np.flatnonzero(wrong))] = True
        state.hits, state.labels = self.hits | right, self.labels.copy()
        state.labels[right] = self._object_classes[self._about[right]]
        kept = ~wrong | right
        state.scores, state.labels, state.hits = state.scores[kept], state.labels[kept], state.hits[kept]
        return state

    def _best_of_each_object(self, candidates: Array) -> Array:
        """Return of the detections about each free object the one with the highest score."""
        candidates = candidates[self._free[self._about[candidates]]]
        candidates = candidates[np.argsort(-self.scores[candidates], kind="stable")]
        first: Array = candidates[np.unique(self._about[candidates], return_index=True)[1]]
        return first


def _explain(image: ImageMatches) -> tuple[Array, Array]:
    """Return the kind of error of each detection of an image, and the object it is about, (D,) each; -1: none."""
    kinds, about = np.full(len(image.scores), _NONE), np.full(len(image.scores), _NONE)
    wrong = np.flatnonzero(image.matched < 0)
    if not len(image.objects):
        kinds[wrong] = _ON_BACKGROUND
        return kinds, about
    same_class = image.classes[:, None] == image.object_classes
    same, other = image.overlaps * same_class, image.overlaps * ~same_class
    for d in wrong:
        of_class, elsewhere = same[d].max(), other[d].max()
        if BACKGROUND <= of_class <= FOREGROUND:
            kinds[d], about[d] = _LOCALISATION, same[d].argmax()
        elif elsewhere >= FOREGROUND:
            kinds[d], about[d] = _CLASSIFICATION, other[d].argmax()
        elif of_class >= FOREGROUND:
            kinds[d] = _DUPLICATE
        else:
            kinds[d] = _ON_BACKGROUND if elsewhere <= BACKGROUND else _BOTH
    return kinds, about


def dict_of(split: ErrorSplit) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {"AP50": split.ap, "counts": dict(split.counts), "dAP": dict(split.costs)}
