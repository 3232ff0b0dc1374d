"""The shapes of images that a detector can scale: of a very long, thin one nothing would be left."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from norton_det.errors import DataError, printable
from norton_det.models.detector_calls import transform_of

Shape = tuple[str, int, int]
"""Name of an image for messages, and its width and height in pixels."""


def size_of(image: Tensor) -> tuple[int, int]:
    """Return width and height of an image (..., H, W).

    Example:
        >>> import torch
        >>> from norton_det.models.image_shapes import size_of
        >>> size_of(torch.rand(3, 48, 64))
        (64, 48)
    """
    height, width = image.shape[-2:]
    return width, height


def check_shapes(detector: nn.Module, images: Iterable[Shape]) -> None:
    """Check that a detector scales images to a width and a height of at least 1.

    Args:
        detector: one of torchvision's. Of other models nothing is known, and nothing is checked.
        images: their names and sizes.

    Raises:
        DataError: it does not. The message has the name and the size of the first such image, and what is expected.

    Example:
        >>> import norton_det as nd
        >>> from norton_det.models.image_shapes import check_shapes
        >>> detector = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=None)
        >>> check_shapes(detector, [("a.png", 640, 480)])
        >>> check_shapes(detector, [("b.png", 60000, 1)])
        Traceback (most recent call last):
        norton_det.errors.DataError: b.png: is 60000 x 1; expected a longer side of at most 1333 times the shorter...
    """
    transform: Any = transform_of(detector)
    if transform is None or transform.fixed_size is not None:
        return
    least, most = min(transform.min_size), transform.max_size
    for name, width, height in images:
        shorter, longer = sorted((width, height))
        if not shorter or math.floor(shorter * min(least / shorter, most / longer)) < 1:  # as torchvision computes it
            raise DataError(
                f"{printable(name)}: is {width} x {height}; expected a longer side of at most {most} times the "
                f"shorter, as the detector scales it to at most {most} pixels (max_size)"
            )
