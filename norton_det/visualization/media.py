"""Images of image files, folders or a video: reading, and writing to files of the same names."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import DataError, UsageError, one_line
from norton_det.files import IMAGE_SUFFIXES, open_regular, write_atomically
from norton_det.image_files import AnnotatedSizes, read_image, write_image
from norton_det.storage import make_folder

_CONTAINERS = (
    *("asf", "avi", "dv", "flv", "h264", "hevc", "ivf", "m4v", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg"),
    *("mpegts", "mpegvideo", "mxf", "nut", "ogg", "rm", "yuv4mpegpipe", "gif", "apng", "mjpeg"),
    *(f"{image}_pipe" for image in ("bmp", "jpeg", "png", "ppm", "tiff", "webp")),  # an image of another suffix
)
"""Formats that are read, by FFmpeg's names: those of one file. Of others, playlists open what they name, even from the
network, and any text is a film of a terminal."""
_LIMITED = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "none"}
_EXPECTED = "an image, or a video as MP4, MOV, Matroska, WebM, AVI, MPEG, Ogg, FLV, ASF or MXF"


class Images:
    """Image files, turned upright by their EXIF orientation, unless annotations have the stored size.

    Iterating yields images (3, H, W), uint8. :meth:`write` writes images under the same names.

    Args:
        paths: paths of the files.
        annotations: COCO annotation file of the images, if there is one.

    Raises:
        UsageError: there is no file, or two files have the same name.
        DataError: (when iterating) a file cannot be read as an image.
    """

    def __init__(self, paths: Sequence[Path], annotations: str | Path | None = None) -> None:
        if not paths:
            raise UsageError(f"no image; expected files ending with {', '.join(IMAGE_SUFFIXES)}")
        counts = Counter(path.name for path in paths)
        if duplicate := next((name for name, count in counts.items() if count > 1), None):
            raise UsageError(f"{duplicate}: {counts[duplicate]} files have this name; expected different names")
        self.paths, self._sizes = paths, AnnotatedSizes(annotations)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        for path in self.paths:
            yield TF.pil_to_tensor(read_image(path, self._sizes).rgb)

    def write(self, folder: str | Path, images: Iterable[Tensor]) -> Path:
        """Write an image (3, H, W), uint8, for each file into a folder, and return the folder.

        Raises:
            UsageError: the folder contains an input file, which would be overwritten.
        """
        folder = _make_output_folder(folder, self.paths)
        for path, image in zip(self.paths, images, strict=True):
            write_image(folder / path.name, TF.to_pil_image(image))
        return folder


class Video:
    """The frames of a video, rotated to upright, without sound.

    Iterating yields images (3, H, W), uint8. :meth:`write` writes images as an MP4 file (H.264) with the same rate.

    Args:
        path: path of the file.

    Raises:
        DataError: the file is missing, is no video, or (when iterating) is damaged.
        UsageError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError:
            raise UsageError(f"{path}: videos need PyAV: pip install norton-det[video]") from None
        self.path, self._av = path, av
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                self.frames, self.rate = stream.frames, stream.average_rate or Fraction(25)
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: cannot be read as an image or a video: {_reason(error)}; expected {_EXPECTED}"
            ) from None

    def __len__(self) -> int:
        return int(self.frames)

    def __iter__(self) -> Iterator[Tensor]:
        try:
            with self._open() as container:
                for frame in container.decode(video=0):
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path}: damaged: {_reason(error)}") from None

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with (
            open_regular(self.path) as file,
            self._av.open(file, mode="r", container_options=_LIMITED) as container,
        ):
            yield container

    def write(self, folder: str | Path, images: Iterable[Tensor]) -> Path:
        """Write images of equal size, (3, H, W), uint8, as a video into a folder, and return the file.

        Raises:
            UsageError: the folder contains the input file, which could be overwritten.
        """
        path = _make_output_folder(folder, [self.path]) / f"{self.path.stem}.mp4"
        write_atomically(path, lambda name: self._encode(name, images))
        return path

    def _encode(self, name: str, images: Iterable[Tensor]) -> None:
        with self._av.open(name, "w") as container:
            stream: Any = container.add_stream("h264", rate=self.rate)
            stream.pix_fmt = "yuv420p"
            height = width = 0
            for image in images:
                if not height:
                    height, width = (side - side % 2 for side in image.shape[-2:])  # yuv420p needs even sides
                    stream.height, stream.width = height, width
                pixels = image[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
                container.mux(stream.encode(self._av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def open_images(paths: Sequence[str | Path], annotations: str | Path | None = None) -> Images | Video:
    """Return the images of image files and folders, or of one video.

    Args:
        paths: of the files and folders.
        annotations: COCO annotation file of the images, if there is one: an image whose annotated size is the stored
            one is not turned by its EXIF orientation.

    Raises:
        DataError: a file is missing or cannot be read.
        UsageError: there is no image, two files have the same name, or a video is given together with other files.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from norton_det.visualization.media import open_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.png")
        ...     [image.shape for image in open_images([folder])]
        [torch.Size([3, 30, 40])]
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file; expected an image, a folder or a video")
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES or not path.is_dir()]
    videos = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not videos:
        return Images(files, annotations)
    if len(files) > 1:
        raise UsageError(f"{videos[0]}: is not an image; a video must be the only input")
    return Video(videos[0])


def _reason(error: Exception) -> str:
    """Return why a file is no video, without the name that PyAV gives it."""
    if getattr(error, "errno", None) == errno.EINVAL:
        return "is of another format"  # not in the list
    return getattr(error, "strerror", None) or one_line(error)


def _make_output_folder(folder: str | Path, inputs: Sequence[Path]) -> Path:
    folder = Path(folder)
    if any(os.path.realpath(path.parent) == os.path.realpath(folder) for path in inputs):
        raise UsageError(f"{folder}: contains the input; expected another folder")
    return make_folder(folder)
