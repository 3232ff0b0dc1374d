"""Image files: what is read of them as RGB, and which way up."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from norton_det.errors import DataError, UsageError
from norton_det.files import open_regular, read_json, write_atomically

Size = tuple[int, int]
"""Width and height in pixels."""
_PROGRAMS = ("EPS",)
"""Formats for which PIL runs another program, with what the file says."""
UPRIGHT = 1
"""EXIF's orientation of an image that is stored upright."""
_FIRST_ON_SIDE = 5
"""The first of EXIF's orientations of images that are stored on their side."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by EXIF's orientation."""


@dataclass(frozen=True)
class StoredImage:
    """An image that was read.

    Attributes:
        rgb: the RGB image.
        orientation: EXIF's orientation, 1 to 8.
        turned: whether ``rgb`` was turned upright.
    """

    rgb: Image.Image
    orientation: int
    turned: bool


class OtherSizeError(DataError):
    """An image does not have the size that was expected.

    Attributes:
        size: width and height of the image.
    """

    def __init__(self, path: str | Path, size: Size) -> None:
        super().__init__(f"{path}: is {size[0]} x {size[1]}")
        self.size = size


def sizes_of(upright: Size) -> set[Size]:
    """Return the sizes in which an image may be stored that has this size once it is upright.

    Example:
        >>> from norton_det.image_files import sizes_of
        >>> sorted(sizes_of((40, 30)))
        [(30, 40), (40, 30)]
    """
    return {upright, upright[::-1]}


def read_image(
    path: str | Path,
    annotated: Callable[[str], Size | None] | None = None,
    sizes: Collection[Size] | None = None,
) -> StoredImage:
    """Read an image file as RGB, 8 bits a channel. Channels of 16 bits are scaled to 8.

    Args:
        path: the file.
        annotated: None: the image is left as it is stored, as torchvision's ``ImageFolder`` does. A function: the image
            is turned upright by its EXIF orientation, unless the stored size is the one that the function returns for
            the file's name. It is called for images with such an orientation only.
        sizes: those that the image may be stored in. One of another size is not decoded, which may need much memory.

    Raises:
        OtherSizeError: the image is stored in another size.
        DataError: the file is missing or damaged, is no regular file, is a program (of PostScript), has more pixels
            than PIL reads, or has integers of 32 bits or floats, whose range no format defines.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from norton_det.image_files import read_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exif = Image.Exif()
        ...     exif[0x0112] = 6
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.jpg", exif=exif)
        ...     upright, stored = (read_image(f"{folder}/a.jpg", lambda name: size) for size in (None, (40, 30)))
        ...     upright.rgb.size, stored.rgb.size
        ((30, 40), (40, 30))
    """
    try:
        # Of an open file, PIL maps no memory: Pillow 13 would take rows for columns in uncompressed TIFF files on end.
        with open_regular(path) as file, Image.open(file) as image:
            if image.format in _PROGRAMS:
                raise ValueError(f"{image.format} is a program; expected pixels")
            if sizes is not None and image.size not in sizes:
                on_side = annotated is not None and _orientation(image) >= _FIRST_ON_SIDE
                raise OtherSizeError(path, image.size[::-1] if on_side else image.size)
            rgb = _to_rgb(image)
            orientation = _orientation(image)  # after reading: TIFF files are turned by PIL, and have none then
    except OtherSizeError:
        raise
    except Exception as error:  # PIL's readers raise errors of any kind for damaged files
        raise DataError(f"{path}: cannot be read as an image: {_reason(error)}") from None
    turned = orientation != UPRIGHT and annotated is not None and annotated(Path(path).name) != rgb.size
    return StoredImage(rgb.transpose(_TURNS[orientation]) if turned else rgb, orientation, turned)


def write_image(path: str | Path, image: Image.Image) -> None:
    """Write an image, atomically, in the format that the file's name says; JPEG with sharp letters.

    Raises:
        UsageError: the folder does not exist, or the name says no format.
    """
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"{path}: names no format of images; expected a name that ends with .jpg or .png, for example")
    options: dict[str, Any] = {"quality": 90} if Path(path).suffix.lower() in (".jpg", ".jpeg") else {}
    write_atomically(path, lambda name: image.save(name, **options))


def read_rgb(path: str | Path) -> Image.Image:
    """Return an image file as RGB, as it is stored; see :func:`read_image`.

    Raises:
        DataError: the file cannot be read.
    """
    return read_image(path).rgb


class AnnotatedSizes:
    """The sizes of the images in a COCO annotation file, by file name. The file is read at the first call.

    Args:
        path: the file; None: no size is known.

    Raises:
        DataError: (when called) the file is missing or is not JSON.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path

    def __call__(self, name: str) -> Size | None:
        """Return the annotated width and height of an image, or None."""
        size: Size | None = self._sizes.get(name)
        return size

    @cached_property
    def _sizes(self) -> Mapping[str, Any]:
        images = [] if self.path is None else read_json(self.path, dict, "COCO annotations").get("images")
        return {
            Path(str(image.get("file_name"))).name: (image.get("width"), image.get("height"))
            for image in (images if isinstance(images, list) else [])
            if isinstance(image, dict)
        }


def _reason(error: Exception) -> str:
    """Return why an image cannot be read, without its path, which the message has."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify its format"
    system = error.strerror if isinstance(error, OSError) else None
    return system or str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged EXIF data in a good image
        return UPRIGHT
    return value if value in _TURNS else UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # grey of 16 bits
        pixels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        kind = "floats" if mode == "F" else "integers"
        raise ValueError(f"its pixels are {kind} of 32 bits; expected 8 or 16 bits a channel")
    return image.convert("RGB")
