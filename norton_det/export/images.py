"""Images on which an exported file is checked: from a folder, or generated."""

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.data import make_shapes
from norton_det.errors import DataError, UsageError
from norton_det.files import IMAGE_SUFFIXES
from norton_det.image_files import AnnotatedSizes, read_image
from norton_det.storage import is_folder

GENERATED = 3
_SMALLEST = 32


def read_images(
    folder: str | Path, count: int, preprocessing: Mapping[str, Any], *, drawn: bool = False
) -> list[Tensor]:
    """Return the first images of a folder, by name, (3, H, W) each, prepared for a network.

    Args:
        folder: with image files in it.
        count: number of images, at most.
        preprocessing: of the network.
        drawn: take images at random, always the same ones, in place of the first.

    Raises:
        DataError: the folder is missing or has no image.
        UsageError: ``count`` is below 1.
    """
    if count < 1:
        raise UsageError(f"number of images is {count}; expected at least 1")
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; expected one with images")
    paths = image_paths(folder)
    if not paths:
        raise DataError(f"{folder}: no image; expected files ending with {', '.join(IMAGE_SUFFIXES)}")
    if drawn:
        random.Random(0).shuffle(paths)
    stored = (TF.pil_to_tensor(read_image(path, AnnotatedSizes(None)).rgb) for path in paths[:count])
    return [prepared(pixels, preprocessing) for pixels in stored]


def image_paths(folder: str | Path) -> list[Path]:
    """Return the image files in a folder, by name."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def generated_images(size: tuple[int, int], preprocessing: Mapping[str, Any]) -> list[Tensor]:
    """Return images (3, H, W) with coloured shapes, prepared for a network; always the same ones."""
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(f"{folder}/shapes", train=GENERATED, val=1, size=max(_SMALLEST, *size))
        images = read_images(f"{folder}/shapes/train2017", GENERATED, {})
    height, width = size
    return [normalized(image[:, :height, :width], preprocessing) for image in images]


def prepared(pixels: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """Return an image (3, H, W), uint8, as a network takes it: scaled and cut as the preprocessing says, normalised."""
    if resize := preprocessing.get("resize"):
        pixels = TF.resize(pixels, [resize], antialias=True)
    if crop := preprocessing.get("crop"):
        pixels = TF.center_crop(pixels, [crop])
    return normalized(TF.to_dtype(pixels, torch.float32, scale=True), preprocessing)


def normalized(image: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """Return an image, 0 to 1, normalised where the network does not do that itself."""
    if preprocessing.get("normalized_by") != "caller" or "mean" not in preprocessing:
        return image
    normal: Tensor = TF.normalize(image, list(preprocessing["mean"]), list(preprocessing["std"]))
    return normal
