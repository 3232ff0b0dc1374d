"""The pixels of annotated images: of the annotated size, and the same way up as the annotations."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.data.coco.image_paths import image_path
from norton_det.errors import DataError
from norton_det.image_files import UPRIGHT, OtherSizeError, Size, StoredImage, read_image, sizes_of

logger = logging.getLogger(__name__)


def annotated_size(entry: Mapping[str, Any]) -> Size:
    """Return width and height of an image in COCO annotations."""
    return entry["width"], entry["height"]


def read_annotated(path: str | Path, size: Size) -> StoredImage:
    """Read an image file with annotations.

    Args:
        path: the file.
        size: the annotated width and height. An image that is stored with this size is left as it is; another one is
            turned upright by its EXIF orientation.

    Raises:
        DataError: the file cannot be read, or has another size.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from norton_det.data.coco.pixels import read_annotated
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exif = Image.Exif()
        ...     exif[0x0112] = 6
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.jpg", exif=exif)
        ...     read_annotated(f"{folder}/a.jpg", (30, 40)).turned, read_annotated(f"{folder}/a.jpg", (40, 30)).turned
        (True, False)
    """
    try:
        image = read_image(path, lambda name: size, sizes_of(size))
        if image.rgb.size != size:
            raise OtherSizeError(path, image.rgb.size)
    except OtherSizeError as error:
        text = f"annotated as {size[0]} x {size[1]}; expected the size that was annotated"
        raise DataError(f"{error}, {text}") from None
    return image


class PixelReader:
    """Reads annotated images, and logs how the first one with an EXIF orientation was treated.

    Raises:
        DataError: (when called) an image cannot be read, or does not have the annotated size.
    """

    def __init__(self) -> None:
        self._logged = torch.zeros(1, dtype=torch.bool).share_memory_()  # by one of all processes that read

    def __call__(self, folder: Path, entry: Mapping[str, Any]) -> Tensor:
        """Return an image, float (3, H, W) with values from 0 to 1, given the folder and its entry in annotations."""
        path = image_path(folder, entry)
        image = read_annotated(path, annotated_size(entry))
        if image.orientation != UPRIGHT and not self._logged:
            self._logged.fill_(True)
            done = "is turned upright, to the annotated size" if image.turned else "is read as stored, as annotated"
            logger.info("%s: has EXIF orientation %d and %s; others by the same rule", path, image.orientation, done)
        pixels: Tensor = TF.pil_to_tensor(image.rgb)
        return pixels.float() / 255
