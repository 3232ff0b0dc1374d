"""Where the image files of COCO annotations are: within the folder of the images, and nowhere else."""

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from norton_det.errors import DataError, shown


def leaves_folder(name: str) -> bool:
    """Return whether a file name leads out of its folder, on any operating system."""
    path = PureWindowsPath(name)  # accepts both kinds of slashes
    return bool(path.root or path.drive) or ".." in path.parts


def image_path(folder: str | Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of an image.

    Args:
        folder: of the images. It may be a link itself.
        entry: of the image, in COCO annotations.

    Raises:
        DataError: the file's name leads out of the folder, or is a link that does.

    Example:
        >>> from norton_det.data.coco.image_paths import image_path
        >>> image_path("coco/val2017", {"file_name": "a/1.jpg"}).as_posix()
        'coco/val2017/a/1.jpg'
        >>> image_path("coco/val2017", {"file_name": "../1.jpg"})
        Traceback (most recent call last):
        norton_det.errors.DataError: coco/val2017: file_name is '../1.jpg'; expected a file in this folder
    """
    name = entry["file_name"]
    path: Path = Path(folder) / name
    if leaves_folder(name):
        raise DataError(f"{folder}: file_name is {shown(name)}; expected a file in this folder")
    place = Path(os.path.realpath(path))
    if not place.is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{path}: is a link to {place}; expected a file in the folder of the images")
    return path
