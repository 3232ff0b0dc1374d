"""Tolerances of keypoints in COCO's evaluation: the sigmas of its object keypoint similarity (OKS).

They are a fraction of an object's size. COCO measured them for its 17 keypoints of persons; data with other keypoints
may have their own, in the field ``keypoint_sigmas`` of a category.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.data.coco.checks.fields import are_sigmas
from norton_det.data.coco.checks.objects import SIGMAS
from norton_det.errors import UsageError, expect

logger = logging.getLogger(__name__)

_DEFAULT = 0.05


def sigmas_of(categories: Iterable[Mapping[str, Any]], persons: NDArray[Any]) -> NDArray[Any]:
    """Return the tolerance of each keypoint.

    Args:
        categories: those that have keypoints, the same number of them.
        persons: COCO's tolerances, which are those of as many keypoints, unless the categories have their own.

    Returns:
        One tolerance for each keypoint; 0.05 for each where nothing is known.

    Raises:
        DataError: those of a category are no positive numbers, or not as many as it has keypoints.

    Example:
        >>> import numpy as np
        >>> from norton_det.evaluation.keypoint_sigmas import sigmas_of
        >>> sigmas_of([{"keypoints": ["head", "tail"]}], np.ones(17))
        array([0.05, 0.05])
        >>> sigmas_of([{"keypoints": ["head", "tail"], "keypoint_sigmas": [0.1, 0.2]}], np.ones(17))
        array([0.1, 0.2])
    """
    category = next(iter(categories))
    count = len(category["keypoints"])
    if SIGMAS not in category:
        return persons if count == len(persons) else np.full(count, _DEFAULT)
    sigmas = category[SIGMAS]
    where = f"category {category.get('id')}: {SIGMAS}"
    expect(are_sigmas(sigmas, count), where, sigmas, f"{count} numbers above 0, as keypoints")
    return np.array(sigmas, dtype=float)


def set_sigmas(coco: Any, sigmas: Sequence[float] | None, name: str | Path) -> None:
    """Set the tolerances of the keypoints of annotations, and log which ones there are.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations. Its categories are changed.
        sigmas: one for each keypoint, or one for all; None: as they are.
        name: name of the annotations in messages: their file.

    Raises:
        UsageError: there is another number of keypoints, or there are none.
    """
    given = list(sigmas or ())
    categories = [category for category in coco.dataset["categories"] if category.get("keypoints")]
    if given and not categories:
        raise UsageError(f"keypoint sigmas are given; {name} has no keypoints")
    for category in categories if given else ():
        count = len(category["keypoints"])
        if len(given) not in (1, count):
            raise UsageError(f"{len(given)} keypoint sigmas; {name} has {count} keypoints; expected {count}, or one")
        category[SIGMAS] = given * (count if len(given) == 1 else 1)
    if categories:
        own = categories[0].get(SIGMAS)
        default = f"COCO's of its 17 keypoints, {_DEFAULT} of others"
        logger.info("%s: tolerances of the keypoints: %s", name, own or default)
