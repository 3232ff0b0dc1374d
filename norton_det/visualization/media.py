"""Pictures to look at, from image files, folders or a video, and back to files."""

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import DataError, UsageError
from norton_det.files import IMAGE_SUFFIXES, write_atomically


class Images:
    """Image files, upright as EXIF says.

    Iterating gives pictures (3, H, W), uint8. :meth:`write` writes pictures under the same names.

    Args:
        paths: of the files.

    Raises:
        UsageError: there is none, or two have the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise UsageError(f"no image; expected files ending with {', '.join(sorted(IMAGE_SUFFIXES))}")
        names = [path.name for path in paths]
        if doubles := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{doubles[0]}: comes {names.count(doubles[0])} times; expected different names")
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        for path in self.paths:
            try:
                with Image.open(path) as picture:
                    yield TF.pil_to_tensor(ImageOps.exif_transpose(picture).convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(f"{path}: cannot be read as an image: {error}") from None

    def write(self, folder: str | Path, pictures: Iterable[Tensor]) -> Path:
        """Write one picture (3, H, W), uint8, for each image into a folder; return the folder."""
        folder = _new_folder(folder, self.paths)
        for path, picture in zip(self.paths, pictures, strict=True):
            write_atomically(folder / path.name, TF.to_pil_image(picture).save)
        return folder


class Video:
    """The frames of a video, upright; sound is left out.

    Iterating gives pictures (3, H, W), uint8. :meth:`write` writes pictures as an MP4 (H.264) of the same rate.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing or no video.
        UsageError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError:
            raise UsageError(f"{path}: a video needs PyAV: install norton-det[video]") from None
        self.path, self._av = path, av
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.frames, self.rate = stream.frames, stream.average_rate or Fraction(25)
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{path}: cannot be read as an image or a video: {error}") from None

    def __len__(self) -> int:
        return int(self.frames)

    def __iter__(self) -> Iterator[Tensor]:
        try:
            with self._av.open(str(self.path)) as container:
                for frame in container.decode(video=0):
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: damaged: {error}") from None

    def write(self, folder: str | Path, pictures: Iterable[Tensor]) -> Path:
        """Write pictures (3, H, W), uint8, of one size as a video into a folder; return the file."""
        path = _new_folder(folder, [self.path]) / f"{self.path.stem}.mp4"
        write_atomically(path, lambda name: self._encode(name, pictures))
        return path

    def _encode(self, name: str, pictures: Iterable[Tensor]) -> None:
        with self._av.open(name, "w") as container:
            stream: Any = container.add_stream("h264", rate=self.rate)
            stream.pix_fmt = "yuv420p"
            height = width = 0
            for picture in pictures:
                if not height:
                    height, width = (side - side % 2 for side in picture.shape[-2:])  # colours are of 2 x 2 pixels
                    stream.height, stream.width = height, width
                pixels = picture[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
                container.mux(stream.encode(self._av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def open_pictures(paths: Sequence[str | Path]) -> Images | Video:
    """Return the pictures of image files and folders, or of one video.

    Raises:
        DataError: a file is missing or cannot be read.
        UsageError: no image, two of one name, or a video with something else.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file; expected an image, a folder or a video")
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES or not path.is_dir()]
    videos = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not videos:
        return Images(files)
    if len(files) > 1:
        raise UsageError(f"{videos[0]}: no image; a video is taken by itself")
    return Video(videos[0])


def _new_folder(folder: str | Path, sources: Sequence[Path]) -> Path:
    folder = Path(folder)
    if any(os.path.realpath(source.parent) == os.path.realpath(folder) for source in sources):
        raise UsageError(f"{folder}: holds the input; expected another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
