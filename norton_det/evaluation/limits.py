"""Limits of the number of detections in an image: COCO's, of each class, and a detector's, of all classes."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from norton_det.data.coco.labels import category_name
from norton_det.errors import UsageError

logger = logging.getLogger(__name__)

COCO_LIMITS = {"bbox": 100, "segm": 100, "keypoints": 20}
"""Number of detections of a class in an image that COCO's evaluation considers, by kind."""
_SMALLER_LIMITS = (1, 10)  # those of AR1 and AR10


def limit_of(kind: str, max_detections: int | None) -> int:
    """Return the limit of a kind: ``max_detections``, or COCO's.

    Raises:
        UsageError: ``max_detections`` is too small.

    Example:
        >>> from norton_det.evaluation.limits import limit_of
        >>> limit_of("keypoints", None), limit_of("bbox", 300)
        (20, 300)
    """
    if max_detections is None:
        return COCO_LIMITS[kind]
    if max_detections <= _SMALLER_LIMITS[-1]:
        raise UsageError(f"max_detections is {max_detections}; expected more than 10, the limit of AR10")
    return max_detections


def warn_of_coco_limit(truths: Mapping[str, Any], limits: Mapping[str, int], name: str | Path) -> None:
    """Log a warning if images have more objects of a class than an evaluation considers detections.

    Args:
        truths: ``pycocotools.coco.COCO`` of the annotations of each kind.
        limits: limit of each kind.
        name: name of the annotations: their file.
    """
    for limit in sorted(set(limits.values())):
        kinds = [kind for kind in truths if limits[kind] == limit]
        truth = truths[kinds[-1]]
        counts = Counter((a["image_id"], a["category_id"]) for a in _objects(truth.dataset, kinds[-1]))
        crowded = {key: count for key, count in counts.most_common() if count > limit}
        if not crowded:
            continue
        (image, category), most = next(iter(crowded.items()))
        lost = sum(count - limit for count in crowded.values())
        logger.warning(
            "%s: %d images have more than %d objects of a class (image %s: %d of %s). The evaluation of %s considers "
            "the %d detections of a class in an image with the highest scores, so that %d of %d objects cannot be "
            "found; --max-detections sets another limit",
            name,
            len({image for image, _ in crowded}),
            limit,
            image,
            most,
            category_name(truth.cats[category]),
            " and ".join(kinds),
            limit,
            lost,
            counts.total(),
        )


def warn_of_detector_limit(
    model: nn.Module, content: Mapping[str, Any], name: str | Path, max_detections: int | None = None
) -> None:
    """Log a warning if a detector returns fewer detections in an image than there are objects, or than are evaluated.

    Args:
        model: an R-CNN of torchvision. For other models nothing is logged.
        content: annotations of the images.
        name: name of the annotations: their file.
        max_detections: as for :class:`norton_det.evaluation.coco.CocoEvaluator`.
    """
    limit = getattr(getattr(model, "roi_heads", None), "detections_per_img", None)
    if limit is None:
        return
    setting = f"the detector returns at most {limit} in an image (box_detections_per_img of train-det --model-kwargs)"
    counts = Counter(a["image_id"] for a in _objects(content, "bbox"))
    image, most = next(iter(counts.most_common(1)), (None, 0))
    if most > limit:
        crowded = sum(count > limit for count in counts.values())
        logger.warning(
            "%s: %d images have more than %d objects (image %s: %d); %s", name, crowded, limit, image, most, setting
        )
    elif max_detections is not None and max_detections > limit:
        logger.warning("--max-detections is %d; %s", max_detections, setting)


def _objects(content: Mapping[str, Any], kind: str) -> Iterable[Mapping[str, Any]]:
    """Return the annotations of objects that are to be found: no crowds, and for keypoints those with visible ones."""
    objects = (a for a in content["annotations"] if not a.get("iscrowd"))
    return (a for a in objects if kind != "keypoints" or a["num_keypoints"])
