"""Detections matched with the objects of each image, at one threshold of IoU: what every analysis of errors reads.

The matching is COCO's: in the order of their scores, each detection takes the object of its class that it overlaps most
among those that are left. So the detections above any score are matched as they would be without the others. Crowds,
and detections in them, are left out. Shapes: D detections and G objects of an image, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.data.coco.labels import class_names
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.coco_results import Result

Array = NDArray[Any]
Entry = Mapping[str, Any]
FOREGROUND = 0.5
"""IoU from which a detection and an object are matched."""


@dataclass(frozen=True)
class ImageMatches:
    """The detections and objects of an image.

    Attributes:
        image: id of the image.
        detections: the detections (D) in the order of their scores.
        objects: the annotations of the objects (G).
        scores: (D,) from high to low.
        classes: (D,) index of the class of each detection.
        object_classes: (G,) index of the class of each object.
        matched: (D,) index of the object that each detection takes; -1: none.
        kind: "bbox", "segm" or "keypoints".
    """

    image: Any
    detections: Sequence[Entry]
    objects: Sequence[Entry]
    scores: Array
    classes: Array
    object_classes: Array
    matched: Array
    kind: str

    @cached_property
    def overlaps(self) -> Array:
        """IoU (D, G) of boxes or masks, whatever their classes; of keypoints it is that of the boxes."""
        from pycocotools import mask as rle

        if not self.detections or not self.objects:
            return np.zeros((len(self.detections), len(self.objects)))
        field = "segmentation" if self.kind == "segm" else "bbox"
        found, objects = ([entry[field] for entry in entries] for entries in (self.detections, self.objects))
        overlaps: Array = np.asarray(rle.iou(found, objects, [0] * len(objects)))
        return overlaps


@dataclass(frozen=True)
class Matches:
    """The matches of a data set.

    Attributes:
        classes: names of the classes (K).
        images: the images, in the order of their ids.
        kind: "bbox", "segm" or "keypoints".
    """

    classes: tuple[str, ...]
    images: tuple[ImageMatches, ...]
    kind: str

    @cached_property
    def objects(self) -> Array:
        """(K,) number of objects of each class."""
        return self._counts("object_classes")

    @cached_property
    def scores(self) -> Array:
        """(N,) scores of all detections, image by image."""
        return np.concatenate([np.zeros(0), *(image.scores for image in self.images)])

    @cached_property
    def labels(self) -> Array:
        """(N,) index of the class of each detection."""
        return np.concatenate([np.zeros(0, int), *(image.classes for image in self.images)])

    @cached_property
    def hits(self) -> Array:
        """(N,) bool: the detection is matched with an object."""
        return np.concatenate([np.zeros(0, bool), *(image.matched >= 0 for image in self.images)])

    def _counts(self, name: str) -> Array:
        parts = [np.bincount(getattr(image, name), minlength=len(self.classes)) for image in self.images]
        counts: Array = np.sum([np.zeros(len(self.classes), int), *parts], axis=0)
        return counts


def match_results(
    evaluator: CocoEvaluator, results: Sequence[Result], kind: str, *, iou: float = FOREGROUND
) -> Matches:
    """Match results with the objects of the evaluator's annotations.

    Args:
        evaluator: an evaluator with the backend "pycocotools".
        results: results that its ``check`` accepts.
        kind: one of its kinds.
        iou: threshold of IoU.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.coco import CocoEvaluator
        >>> from norton_det.evaluation.matches import match_results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=2, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> results = [{**annotation, "score": 1.0} for annotation in coco.dataset["annotations"]]
        >>> matches = match_results(CocoEvaluator(coco, ["bbox"]), results, "bbox")
        >>> bool(matches.hits.all()), len(matches.scores) == int(matches.objects.sum())
        (True, True)
    """
    evaluation = evaluator.match(results, kind, iou=iou)
    count = len(evaluation.params.imgIds)
    names = class_names(evaluation.cocoGt.cats[k] for k in evaluation.params.catIds)
    images = [
        _image(evaluation, image.item(), evaluation.evalImgs[i::count], kind)  # numpy.unique made the ids arrays
        for i, image in enumerate(evaluation.params.imgIds)
    ]
    return Matches(tuple(names.values()), tuple(images), kind)


def _image(evaluation: Any, image: Any, of_classes: Sequence[Any], kind: str) -> ImageMatches:
    """Collect the matches of an image, one entry for each class."""
    objects: list[tuple[int, Entry]] = []
    found: list[tuple[int, Entry, int]] = []
    for k, entry in enumerate(of_classes):
        if entry is None:  # neither detections nor objects
            continue
        position = {-1: -1}
        for number, ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if not ignored:
                position[number] = len(objects)
                objects.append((k, evaluation.cocoGt.anns[number]))
        takes = np.where(entry["dtMatches"][0] > 0, entry["dtMatches"][0], -1).astype(int)
        for number, object_id, ignored in zip(entry["dtIds"], takes, entry["dtIgnore"][0], strict=True):
            if not ignored:
                found.append((k, evaluation.cocoDt.anns[number], position[int(object_id)]))
    scores = np.array([detection["score"] for _, detection, _ in found], float)
    order = np.argsort(-scores, kind="stable")
    found = [found[i] for i in order]
    return ImageMatches(
        image,
        [detection for _, detection, _ in found],
        [annotation for _, annotation in objects],
        scores[order],
        np.array([k for k, _, _ in found], int),
        np.array([k for k, _ in objects], int),
        np.array([number for _, _, number in found], int),
        kind,
    )
