"""What a detector finds, confuses and misses at a score threshold: the confusion matrix, sizes, and each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.evaluation.matches import FOREGROUND, Array, ImageMatches, Matches

SIZES = (0, 16, 32, 64, 96, 192, 384, np.inf)
"""Limits of the sizes of objects in pixels, the square root of their areas; 32 and 96 are COCO's."""


def confusion_matrix(matches: Matches, threshold: float) -> NDArray[np.int64]:
    """Return how often objects of each class are detected as which class.

    A detection that is matched with an object of its class counts on the diagonal. Each of the others, in the order of
    their scores, takes the free object of another class that it overlaps most, with an IoU of at least 0.5.

    Args:
        matches: matches of a data set.
        threshold: detections with at least this score count.

    Returns:
        (K + 1, K + 1): the row is the class of the object, the column that of the detection. The last column counts
        objects that are missed, the last row detections of nothing or of an object that is detected already.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.at_threshold import confusion_matrix
        >>> from norton_det.evaluation.matches import ImageMatches, Matches
        >>> cat, dog = {"bbox": [0, 0, 9, 9]}, {"bbox": [20, 0, 9, 9]}
        >>> scores, both = np.array([0.9, 0.8]), np.array([0, 1])
        >>> image = ImageMatches(1, [cat, dog], [cat, dog], scores, both * 0, both, np.array([0, -1]), "bbox")
        >>> confusion_matrix(Matches(("cat", "dog"), (image,), "bbox"), 0.5).tolist()
        [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    """
    count = len(matches.classes)
    matrix = np.zeros((count + 1, count + 1), np.int64)
    for image in matches.images:
        takes = _takes(image, threshold)
        columns = image.classes[: len(takes)]
        rows = np.append(image.object_classes, count)[takes]  # -1 is the last: no object
        np.add.at(matrix, (rows, columns), 1)
        missed = np.delete(image.object_classes, takes[takes >= 0])
        matrix[:, count] += np.bincount(missed, minlength=count + 1)
    return matrix


def _takes(image: ImageMatches, threshold: float) -> Array:
    """Return the object that each detection above the threshold takes, of its class or of another; -1: none."""
    takes: Array = image.matched[image.scores >= threshold].copy()
    if image.kind == "keypoints":
        return takes
    for d in np.flatnonzero(takes < 0):
        overlaps = image.overlaps[d].copy()
        overlaps[takes[takes >= 0]] = 0
        overlaps[image.object_classes == image.classes[d]] = 0
        if len(overlaps) and overlaps.max() >= FOREGROUND:
            takes[d] = overlaps.argmax()
    return takes


@dataclass(frozen=True)
class SizeGroup:
    """Objects within a range of sizes.

    Attributes:
        low: lower limit in pixels, of the square root of the area.
        high: upper limit; infinite in the last group.
        objects: number of objects.
        found: number of those that are found.
    """

    low: float
    high: float
    objects: int
    found: int


def found_by_size(matches: Matches, threshold: float, limits: Sequence[float] = SIZES) -> list[SizeGroup]:
    """Return how many objects of each size are found by detections of their class.

    Args:
        matches: matches of a data set.
        threshold: detections with at least this score count.
        limits: limits of the sizes, from low to high.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.at_threshold import found_by_size
        >>> from norton_det.evaluation.matches import ImageMatches, Matches
        >>> cat = {"bbox": [0, 0, 9, 9], "area": 81}
        >>> image = ImageMatches(1, [cat], [cat], np.array([0.9]), *np.zeros((3, 1), int), "bbox")
        >>> found_by_size(Matches(("cat",), (image,), "bbox"), 0.5, [0, 10, np.inf])
        [SizeGroup(low=0, high=10, objects=1, found=1), SizeGroup(low=10, high=inf, objects=0, found=0)]
    """
    sizes = [np.sqrt([annotation["area"] for annotation in image.objects]) for image in matches.images]
    found = [
        np.isin(np.arange(len(image.objects)), image.matched[image.scores >= threshold]) for image in matches.images
    ]
    size, is_found = np.concatenate([np.zeros(0), *sizes]), np.concatenate([np.zeros(0, bool), *found])
    groups = []
    for low, high in pairwise(limits):
        inside = (low <= size) & (size < high)
        groups.append(SizeGroup(low, high, int(inside.sum()), int((inside & is_found).sum())))
    return groups


@dataclass(frozen=True)
class ImageErrors:
    """The errors in an image at a score threshold.

    Attributes:
        image: id of the image.
        found: number of objects that are found.
        missed: number of objects that are not.
        false_alarms: number of detections that are not matched.
    """

    image: Any
    found: int
    missed: int
    false_alarms: int

    @property
    def error(self) -> float:
        """1 - F1 of the image: the fraction of wrong ones among objects and detections; 0 without any of them."""
        wrong = self.missed + self.false_alarms
        return wrong / (2 * self.found + wrong) if wrong else 0.0


def errors_by_image(matches: Matches, threshold: float) -> list[ImageErrors]:
    """Return the errors in each image, the worst image first: by 1 - F1, then by the number of errors.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.at_threshold import errors_by_image
        >>> from norton_det.evaluation.matches import ImageMatches, Matches
        >>> cat = {"bbox": [0, 0, 9, 9], "area": 81}
        >>> image = ImageMatches(1, [cat], [cat], np.array([0.9]), *np.zeros((3, 1), int), "bbox")
        >>> matches = Matches(("cat",), (image,), "bbox")
        >>> errors_by_image(matches, 0.5)[0].error, errors_by_image(matches, 0.95)[0].error
        (0.0, 1.0)
    """
    rows = []
    for image in matches.images:
        takes = image.matched[image.scores >= threshold]
        found = int((takes >= 0).sum())
        rows.append(ImageErrors(image.image, found, len(image.objects) - found, len(takes) - found))
    return sorted(rows, key=lambda row: (-row.error, -(row.missed + row.false_alarms)))
