"""Checks of the image files of COCO annotations."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from norton_det.data.coco.checks.content import Annotations, Entry
from norton_det.data.coco.checks.findings import ERROR, NOTE, WARNING, Check, Finding, run_checks
from norton_det.data.coco.image_paths import image_path, leaves_folder
from norton_det.data.coco.pixels import annotated_size
from norton_det.errors import DataError
from norton_det.files import IMAGE_SUFFIXES
from norton_det.image_files import UPRIGHT, OtherSizeError, Size, read_image, sizes_of


@dataclass(frozen=True)
class ImageFile:
    """An image file and its entry in the annotations.

    Attributes:
        entry: the entry.
        path: path of the file.
        size: width and height in pixels, as read; None if the file is missing or cannot be read.
        error: the reason why the file cannot be read; empty if it can be read or is missing.
        orientation: EXIF's orientation, 1 to 8.
        turned: whether the image was turned upright.
    """

    entry: Entry
    path: Path
    size: Size | None = None
    error: str = ""
    orientation: int = UPRIGHT
    turned: bool = False


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and the files in it that the annotations name."""

    path: Path
    files: list[ImageFile]


def check_images(content: Mapping[str, Any], folder: str | Path) -> list[Finding]:
    """Read and check all images that COCO annotations name.

    Args:
        content: the content of the annotation file.
        folder: folder of the images.

    Returns:
        The findings, errors first.

    Raises:
        DataError: the content lacks ``images``, ``annotations`` or ``categories``.
    """
    entries = [entry for entry in Annotations(content).images if not leaves_folder(entry["file_name"])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda entry: _read(entry, Path(folder)), entries)
        files = list(tqdm(results, desc="images", total=len(entries), disable=None, leave=False))
    return run_checks(CHECKS, ImageFolder(Path(folder), files))


def _read(entry: Entry, folder: Path) -> ImageFile:
    path, size = folder / entry["file_name"], annotated_size(entry)
    try:
        image = read_image(image_path(folder, entry), lambda name: size, sizes_of(size))  # as the data set does
    except OtherSizeError as error:
        return ImageFile(entry, path, error.size)
    except DataError as error:
        return ImageFile(entry, path, error=str(error) if os.path.lexists(path) else "")
    return ImageFile(entry, path, image.rgb.size, orientation=image.orientation, turned=image.turned)


def _missing(folder: ImageFolder) -> Iterator[str]:
    return (str(file.path) for file in folder.files if file.size is None and not file.error)


def _unreadable(folder: ImageFolder) -> Iterator[str]:
    return (file.error for file in folder.files if file.error)


def _sizes(folder: ImageFolder) -> Iterator[str]:
    for file in folder.files:
        annotated = annotated_size(file.entry)
        if file.size not in (None, annotated):
            yield "{}: {} x {}, annotated as {} x {}".format(file.path, *file.size, *annotated)


def _rotated(turned: bool) -> Callable[[ImageFolder], Iterator[str]]:
    def find(folder: ImageFolder) -> Iterator[str]:
        for file in folder.files:
            fits = file.size == annotated_size(file.entry)
            if file.orientation != UPRIGHT and file.turned == turned and fits:
                yield f"{file.path}: orientation {file.orientation}"

    return find


def _without_entries(folder: ImageFolder) -> Iterator[str]:
    named = {file.path for file in folder.files}
    for path in sorted(folder.path.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path not in named:
            yield path.relative_to(folder.path).as_posix()


CHECKS = (
    Check("missing images", ERROR, _missing, "expected a file for each image of the annotations"),
    Check("unreadable images", ERROR, _unreadable, "they would stop the training"),
    Check("sizes that differ", ERROR, _sizes, "boxes and masks do not fit the pixels; reading stops there"),
    Check("images rotated by EXIF", WARNING, _rotated(False), "read as stored, which is the annotated size"),
    Check("images turned by EXIF", NOTE, _rotated(True), "read upright, which is the annotated size"),
    Check("files without entry", NOTE, _without_entries, "the annotations do not name them; they are not used"),
)
"""All checks of image files, in the order of the findings."""
