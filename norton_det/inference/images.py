"""Images in any form that a user has them in: files, folders, a video, PIL's, arrays, tensors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import UsageError
from norton_det.image_files import AnnotatedSizes, read_image
from norton_det.storage import is_folder
from norton_det.visualization.media import Images, open_images

OneImage: TypeAlias = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
"""A file, an RGB image of PIL, an array (H, W, 3) or (H, W), or a tensor (3, H, W)."""


@dataclass(frozen=True)
class Source:
    """An image where it is: in a file, or in memory.

    Attributes:
        file: the file; None: in memory.
        content: the pixels (3, H, W), uint8 or float with values from 0 to 1; None: in the file.
    """

    file: Path | None = None
    content: Tensor | None = None

    @property
    def name(self) -> str:
        """What messages call the image."""
        return "an image" if self.file is None else str(self.file)

    def pixels(self) -> Tensor:
        """Return the pixels (3, H, W), uint8 or float with values from 0 to 1; files are read anew.

        Raises:
            DataError: the file cannot be read.
        """
        if self.content is not None:
            return self.content
        assert self.file is not None
        pixels: Tensor = TF.pil_to_tensor(read_image(self.file, AnnotatedSizes(None)).rgb)
        return pixels


def is_one(images: object) -> bool:
    """Tell whether this is one image, not several: not a folder, a video, a batch or any other iterable."""
    if isinstance(images, (str, Path)):
        return not is_folder(images) and isinstance(open_images([images]), Images)
    return isinstance(images, Image.Image) or (isinstance(images, (Tensor, np.ndarray)) and images.ndim <= 3)


def sources(images: Any) -> Iterator[Source]:
    """Return the images of a file, folder or video, or of an iterable, one after the other, or the one image.

    Raises:
        DataError: there is no such file.
        UsageError: it is no image; of an iterable, when it is its turn.
    """
    if isinstance(images, (str, Path)):
        found = open_images([images])
        return map(Source, found.paths) if isinstance(found, Images) else (Source(content=frame) for frame in found)
    if is_one(images):
        return iter([Source(content=_pixels(images))])
    if not isinstance(images, Iterable):
        raise UsageError(f"images is {_described(images)}; expected {_EXPECTED}, or several")
    return (source for image in images for source in _checked(image))


def _checked(image: Any) -> Iterator[Source]:
    if not is_one(image):
        raise UsageError(f"an image is {_described(image)}; expected {_EXPECTED}")
    return sources(image)


def _pixels(image: Any) -> Tensor:
    """Return an image in memory as a tensor (3, H, W), uint8 or float."""
    if isinstance(image, Image.Image):
        pixels: Tensor = TF.pil_to_tensor(image.convert("RGB"))
        return pixels
    if isinstance(image, np.ndarray):
        grey = image.ndim == 2
        tensor = (
            torch.from_numpy(np.require(image, requirements=["C", "W"])) if image.dtype.kind in "uf" else torch.zeros(0)
        )
        tensor = tensor.expand(3, *tensor.shape) if grey else tensor.movedim(-1, 0)
    else:
        tensor = image
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise UsageError(f"an image is {_described(image)}; expected {_EXPECTED}")
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()
        if not (low >= 0 and high <= 1):
            raise UsageError(f"a float image has values from {low:g} to {high:g}; expected 0 to 1, or uint8")
    return tensor


_EXPECTED = "a file, an image of PIL, a tensor (3, H, W) or an array (H, W, 3), uint8 or float from 0 to 1"


def _described(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return repr(value) if isinstance(value, (str, Path)) else type(value).__name__
