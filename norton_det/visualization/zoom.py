"""Parts of an image that are worth enlarging, and what of the detections is in them."""

from collections.abc import Sequence
from typing import Any

import torch

from norton_det.visualization.draw import Box, Detections

ASPECT = 0.75
"""Height of an enlarged part, as a fraction of its width."""
_SURROUNDINGS = 3
"""Width of a part, as a multiple of its object's."""
_SMALLEST = 0.1
"""The same, at least, as a fraction of the image's."""
_ENLARGED = 4 / 3
"""Least enlargement, where the parts are side by side in the width of the image."""


def parts_around(boxes: Sequence[Sequence[float]], width: int, height: int, limit: int) -> list[Box]:
    """Return parts of an image around objects, the first ones first; one for objects that are close to each other.

    Around an object that is too large for an enlargement there is none.

    Args:
        boxes: of the objects, as x1, y1, x2, y2 in pixels.
        width: of the image.
        height: of the image.
        limit: maximum number of parts.

    Returns:
        Boxes in whole pixels within the image, of the aspect ratio ``ASPECT`` as far as pixels allow it.

    Example:
        >>> from norton_det.visualization.zoom import parts_around
        >>> parts_around([[300, 220, 340, 250], [310, 220, 350, 250], [0, 0, 8, 8]], 640, 480, limit=3)
        [(260, 190, 380, 280), (0, 0, 64, 48)]
    """
    largest = min(width, height / ASPECT) / (_ENLARGED * max(limit, 1))
    parts: list[Box] = []
    for x1, y1, x2, y2 in boxes:
        x, y, size = (x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, (y2 - y1) / ASPECT)
        if len(parts) < limit and size < largest and not any(a <= x <= c and b <= y <= d for a, b, c, d in parts):
            wide = min(max(_SURROUNDINGS * size, _SMALLEST * width), largest)
            w, h = max(1, round(wide)), max(1, round(ASPECT * wide))
            left, top = min(max(0, round(x - w / 2)), width - w), min(max(0, round(y - h / 2)), height - h)
            parts.append((left, top, left + w, top + h))
    return parts


def part_of(detections: Detections, box: Box) -> tuple[list[int], Detections]:
    """Return which objects reach into a part of the image, and these in pixels of the part.

    Example:
        >>> import torch
        >>> from norton_det.visualization.zoom import part_of
        >>> detections = {"boxes": torch.tensor([[0, 0, 9, 9], [12, 15, 20, 20]]), "labels": torch.tensor([1, 2])}
        >>> part_of(detections, (10, 10, 30, 25))
        ([1], {'labels': tensor([2]), 'boxes': tensor([[ 2,  5, 10, 10]])})
    """
    x1, y1, x2, y2 = box
    corners = enumerate(torch.as_tensor(detections["boxes"]).tolist())
    chosen = [i for i, (a, b, c, d) in corners if a < x2 and b < y2 and c > x1 and d > y1]
    part: dict[str, Any] = {name: detections[name][chosen] for name in ("labels", "scores") if name in detections}
    part["boxes"] = detections["boxes"][chosen] - detections["boxes"].new_tensor([x1, y1, x1, y1])
    if "masks" in detections:
        part["masks"] = [detections["masks"][i][y1:y2, x1:x2] for i in chosen]
    if "keypoints" in detections:
        part["keypoints"] = detections["keypoints"][chosen] - detections["keypoints"].new_tensor([x1, y1, 0])
    return chosen, part
