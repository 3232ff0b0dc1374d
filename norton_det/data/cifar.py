"""CIFAR-10 in memory: batches are cropped, flipped and normalised as tensors, on the device of the training."""

import hashlib
import json
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.data.batching import Batches, Batching
from norton_det.data.image_folder import MEAN, SPLITS, STD, image_folder
from norton_det.data.loader import load
from norton_det.errors import DataError, expect_choice, one_line
from norton_det.image_files import read_rgb
from norton_det.models.tensor_files import SHA256_KEY, read_header, sha256_of, write_file
from norton_det.storage import is_file, is_folder

logger = logging.getLogger(__name__)

SIZE, PADDING = 32, 4
_CHUNK = 250  # images that are decoded at a time
Batch = tuple[Tensor, Tensor]


class MemoryImages:
    """A data set of small images in one tensor.

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        classes: name of each label.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str]) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "MemoryImages":
        """Return the data set of the images with these indices, int64 (M,)."""
        return MemoryImages(self.images[indices], self.labels[indices], self.classes)

    def to(self, device: torch.device) -> "MemoryImages":
        """Return the data set on a device."""
        return MemoryImages(self.images.to(device), self.labels.to(device), self.classes)

    def training(self, batching: Batching, epoch: int, start: int = 0) -> Batches[Batch]:
        """Return the batches of an epoch, beginning with number ``start``: images (B, 3, 32, 32) and labels (B,).

        Each image is shifted by up to 4 pixels, with a black margin, and flipped horizontally with probability 1/2.
        """
        count, generator = len(self), batching.generator(epoch)
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(2 * PADDING + 1, (count, 2), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        device = self.images.device

        def make(positions: Tensor) -> Batch:
            indices = order[positions].to(device)
            crops = shift_and_mirror(self.images[indices], shift[positions].to(device), mirror[positions].to(device))
            return normalize(crops), self.labels[indices]

        return Batches(make, batching.training(count, start))

    def evaluation(self, batching: Batching) -> Batches[Batch]:
        """Return batches of the images without augmentation: images (B, 3, 32, 32) and labels (B,)."""

        def make(positions: Tensor) -> Batch:
            indices = positions.to(self.images.device)
            return normalize(self.images[indices]), self.labels[indices]

        return Batches(make, batching.evaluation(len(self)))


def shift_and_mirror(images: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Return crops of 32x32 pixels of images that are padded by 4 black pixels on every side; some are flipped.

    Args:
        images: (N, 3, 32, 32).
        shift: row and column of the upper left corner in the padded image, int64 (N, 2), 0 to 8.
        mirror: the images that are flipped horizontally, bool (N,).

    Returns:
        Images of the same shape and type.
    """
    windows = F.pad(images, (PADDING,) * 4).unfold(2, SIZE, 1).unfold(3, SIZE, 1)  # (N, 3, 9, 9, 32, 32), a view
    crops = windows[torch.arange(len(images), device=images.device), :, shift[:, 0], shift[:, 1]]
    return torch.where(mirror.view(-1, 1, 1, 1), crops.flip(-1), crops)


def normalize(images: Tensor) -> Tensor:
    """Return uint8 images (N, 3, H, W) as float, with a mean of about 0 and a standard deviation of about 1."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (MEAN, STD))
    return images.float().mul_(1 / (255 * std)).sub_(mean / std)


def read_cifar(root: str | Path, split: str, *, workers: int = 0, cache: bool = False) -> MemoryImages:
    """Read a split of CIFAR-10 from torchvision's files if ``root`` has them, otherwise from class folders.

    Args:
        root: a folder with ``cifar-10-batches-py/``, or with class folders in ``train/`` and in ``val/`` or ``test/``.
        split: "train", "val" or "test"; the latter two are the same in torchvision's files.
        workers: number of processes that decode the images of class folders.
        cache: store the decoded images of class folders in a file beside them, and use this file the next time.

    Raises:
        UsageError: an unknown split.
        DataError: the data are missing or damaged, or an image is not 32x32.
    """
    expect_choice("split", split, SPLITS)
    if is_folder(Path(root) / CIFAR10.base_folder):
        try:
            data = CIFAR10(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise DataError(f"{Path(root) / CIFAR10.base_folder}: {error}") from None
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return MemoryImages(pixels, torch.tensor(data.targets), list(data.classes))
    folder = image_folder(root, split, loader=_read)
    labels = torch.tensor(folder.targets)
    if not cache:
        return MemoryImages(_decode(folder, workers), labels, folder.classes)
    path = Path(folder.root).with_suffix(".cache.safetensors")
    images = _read_cache(path, folder)
    if images is None:
        images = _decode(folder, workers)
        header = {"files": _fingerprint(folder), SHA256_KEY: sha256_of({"images": images})}
        write_file(path, {"images": images}, header)
    return MemoryImages(images, labels, folder.classes)


def _read(path: str) -> Image.Image:
    image = read_rgb(path)
    if image.size != (SIZE, SIZE):
        raise DataError(f"{path}: is {'x'.join(map(str, image.size))}; expected {SIZE}x{SIZE}")
    return image


def _decode(folder: ImageFolder, workers: int) -> Tensor:
    order = torch.arange(len(folder.samples))
    chunks = load(_Files(folder), order, None, order.split(_CHUNK), workers=workers)
    return torch.cat([*tqdm(chunks, desc=f"Reading {folder.root}", disable=None, leave=False)])


class _Files:
    """Images of files, uint8 (3, H, W), by index."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __getitem__(self, index: int) -> Tensor:
        pixels: Tensor = TF.pil_to_tensor(self.folder.loader(self.name_of(index)))
        return pixels

    def name_of(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.folder.samples[index][0])


def _read_cache(path: Path, folder: ImageFolder) -> Tensor | None:
    """Return the images of a cache file; None if there is none of these images, and a warning if it is damaged."""
    if not is_file(path):
        return None
    try:
        header = read_header(path)
        if header.get("files") != _fingerprint(folder):
            return None  # older than the images
        images: Tensor = load_file(path)["images"].clone()  # as long as it is mapped, cutting the file ends the process
        good = images.dtype == torch.uint8 and images.shape == (len(folder.samples), 3, SIZE, SIZE)
        if good and header.get(SHA256_KEY) == sha256_of({"images": images}):
            return images
        problem = f"{path}: damaged"
    except (OSError, KeyError, SafetensorError, DataError) as error:
        problem = f"{path}: damaged: {one_line(error)}"
    logger.warning("%s; the images are read and stored anew", problem)
    return None


def _fingerprint(folder: ImageFolder) -> str:
    """Return a hash of the names, sizes and modification times of the image files."""
    files = [(Path(p).relative_to(folder.root).as_posix(), Path(p).stat()) for p, _ in folder.samples]
    listing = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(listing.encode()).hexdigest()
