"""Checks of the image files that belong to COCO annotations."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from tqdm import tqdm

from norton_det.data.coco.checks.content import Annotations, Entry
from norton_det.data.coco.checks.fields import leaves_folder
from norton_det.data.coco.checks.findings import ERROR, NOTE, WARNING, Check, Finding, run_checks
from norton_det.files import IMAGE_SUFFIXES

_UPRIGHT = 1  # EXIF's orientation of a picture that is stored as it is to be shown


@dataclass(frozen=True)
class ImageFile:
    """What an image file turned out to be.

    Attributes:
        entry: its entry in the annotations.
        path: the file.
        size: width and height in pixels, as stored; None where the file is missing or cannot be read.
        error: why it cannot be read.
        orientation: EXIF's, 1 to 8.
    """

    entry: Entry
    path: Path
    size: tuple[int, int] | None = None
    error: str = ""
    orientation: int = _UPRIGHT


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and what was seen of those that the annotations name."""

    folder: Path
    files: list[ImageFile]


def check_images(content: Mapping[str, Any], folder: str | Path) -> list[Finding]:
    """Read all images that COCO annotations name and tell what is wrong with them.

    Args:
        content: of the annotation file.
        folder: where the images are.

    Returns:
        Findings, errors first.

    Raises:
        DataError: the content is not that of COCO annotations at all.
    """
    entries = [entry for entry in Annotations(content).images if not leaves_folder(entry["file_name"])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = pool.map(lambda entry: _look(entry, Path(folder) / entry["file_name"]), entries)
        files = list(tqdm(seen, desc="images", total=len(entries), disable=None, leave=False))
    return run_checks(CHECKS, ImageFolder(Path(folder), files))


def _look(entry: Entry, path: Path) -> ImageFile:
    if not path.is_file():
        return ImageFile(entry, path)
    try:
        with Image.open(path) as picture:
            picture.convert("RGB")  # reads it to the end, as the data set does
            orientation = picture.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
            return ImageFile(entry, path, picture.size, orientation=orientation)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return ImageFile(entry, path, error=str(error) or type(error).__name__)


def _missing(seen: ImageFolder) -> Iterator[str]:
    return (str(file.path) for file in seen.files if file.size is None and not file.error)


def _unreadable(seen: ImageFolder) -> Iterator[str]:
    return (f"{file.path}: {file.error}" for file in seen.files if file.error)


def _sizes(seen: ImageFolder) -> Iterator[str]:
    for file in seen.files:
        annotated = (file.entry["width"], file.entry["height"])
        if file.size not in (None, annotated):
            yield "{}: {} x {}, annotated as {} x {}".format(file.path, *file.size, *annotated)


def _rotated(seen: ImageFolder) -> Iterator[str]:
    return (f"{file.path}: orientation {file.orientation}" for file in seen.files if file.orientation != _UPRIGHT)


def _without_entries(seen: ImageFolder) -> Iterator[str]:
    named = {file.path for file in seen.files}
    for path in sorted(seen.folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path not in named:
            yield path.relative_to(seen.folder).as_posix()


CHECKS = (
    Check("missing images", ERROR, _missing, "expected a file for each image of the annotations"),
    Check("unreadable images", ERROR, _unreadable, "they stop the training"),
    Check("sizes that differ", ERROR, _sizes, "boxes and masks do not fit the pixels"),
    Check(
        "images rotated by EXIF",
        WARNING,
        _rotated,
        "read as stored: annotations made on the upright picture do not fit",
    ),
    Check("files without entry", NOTE, _without_entries, "the annotations do not name these images; they are not used"),
)
"""All checks of image files, in the order in which they are told."""
