"""Class folders: a folder for each split, in it one for each class, as torchvision's ``ImageFolder`` reads them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from norton_det.errors import DataError, UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, 0 to 1: what the published networks are trained with."""
SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test",)}
"""Names of splits, and what the folder of each may be called; the first that exists is taken."""


def image_folder(root: str | Path, split: str, loader: Callable[[Any], Any]) -> ImageFolder:
    """Return torchvision's ``ImageFolder`` of a split.

    Args:
        root: the folder that holds the splits.
        split: a key of ``SPLITS``.
        loader: path -> image.

    Raises:
        UsageError: an unknown split.
        DataError: the folder is missing or has a class without images, or no class.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; expected one of: {', '.join(SPLITS)}")
    wanted = " or ".join(f"{name}/" for name in SPLITS[split])
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; expected one with class folders in {wanted}")
    folder = next((Path(root) / name for name in SPLITS[split] if (Path(root) / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{root}: has no {wanted}; expected class folders in it")
    try:
        return ImageFolder(str(folder), loader=loader)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no class folders with images: {error}") from None


def read_rgb(path: str) -> Image.Image:
    """Read an image file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None


def check_classes(train: Sequence[str], val: Sequence[str], root: str | Path) -> None:
    """Check that both splits have the same classes.

    Raises:
        DataError: they have not.
    """
    if different := sorted(set(train) ^ set(val)):
        raise DataError(f"{root}: only one split has the class {different[0]}; expected the same classes in both")


def check_num_classes(num_classes: int, classes: Sequence[str], source: str | Path) -> None:
    """Check that a network, called ``source``, has as many outputs as the data has classes.

    Raises:
        UsageError: it has not.
    """
    if num_classes != len(classes):
        raise UsageError(f"{source}: has {num_classes} classes; the data has {len(classes)} ({classes[0]}, ...)")
