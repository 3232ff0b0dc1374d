"""Class labels of detectors: COCO's category ids, with 0 for the background; and the names of keypoints."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Category = Mapping[str, Any]
"""An entry of ``categories`` in COCO annotations."""


def num_classes(categories: Iterable[Category]) -> int:
    """Return the number of outputs of a detector: the largest category id, plus one for the background.

    Example:
        >>> from norton_det.data.coco.labels import num_classes
        >>> num_classes([{"id": 1}, {"id": 90}])
        91
    """
    return max((category["id"] for category in categories), default=0) + 1


def class_labels(annotations: Iterable[Mapping[str, Any]]) -> Tensor:
    """Return the labels of annotations, int64 of shape (N,).

    Example:
        >>> from norton_det.data.coco.labels import class_labels
        >>> class_labels([{"category_id": 3}, {"category_id": 1}])
        tensor([3, 1])
    """
    return torch.tensor([annotation["category_id"] for annotation in annotations], dtype=torch.int64)


def keypoint_names(categories: Iterable[Category]) -> list[str]:
    """Return the names of the keypoints, those of the first category that has any; empty if none has.

    Example:
        >>> from norton_det.data.coco.labels import keypoint_names
        >>> keypoint_names([{"id": 1}, {"id": 2, "keypoints": ["head", "tail"]}])
        ['head', 'tail']
    """
    names: list[str] = next((category["keypoints"] for category in categories if "keypoints" in category), [])
    return names
