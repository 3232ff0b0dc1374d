"""CIFAR-10 in memory: batches are cut, mirrored and normalised as whole tensors, on the device that trains."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.data.batching import Batches, Batching
from norton_det.data.image_folder import MEAN, STD, image_folder, read_rgb
from norton_det.errors import DataError
from norton_det.files import write_atomically

SIZE, PADDING = 32, 4
Batch = tuple[Tensor, Tensor]


class MemoryImages:
    """A set of small images, held as one tensor.

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        classes: name of each label.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str]) -> None:
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, numbers: Tensor) -> "MemoryImages":
        """Return the set of the images with these numbers, int64 (M,)."""
        return MemoryImages(self.images[numbers], self.labels[numbers], self.classes)

    def to(self, device: torch.device) -> "MemoryImages":
        """Return the set on a device."""
        return MemoryImages(self.images.to(device), self.labels.to(device), self.classes)

    def training(self, batching: Batching, epoch: int, start: int = 0) -> Batches[Batch]:
        """Return the batches of an epoch from number ``start`` on: images float (B, 3, 32, 32), labels (B,).

        Each image is shifted by up to 4 pixels, what comes in being black, and mirrored in half of the cases.
        """
        count, generator = len(self), batching.generator(epoch)
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(2 * PADDING + 1, (count, 2), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        device = self.images.device

        def make(positions: Tensor) -> Batch:
            numbers = order[positions].to(device)
            cut = shift_and_mirror(self.images[numbers], shift[positions].to(device), mirror[positions].to(device))
            return normalize(cut), self.labels[numbers]

        return Batches(make, batching.training(count, start))

    def evaluation(self, batching: Batching) -> Batches[Batch]:
        """Return batches of the images as they are: float (B, 3, 32, 32), labels (B,)."""

        def make(positions: Tensor) -> Batch:
            numbers = positions.to(self.images.device)
            return normalize(self.images[numbers]), self.labels[numbers]

        return Batches(make, batching.evaluation(len(self)))


def shift_and_mirror(images: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Pad images by 4 black pixels all around, cut 32x32 out of each, and mirror some.

    Args:
        images: (N, 3, 32, 32).
        shift: row and column of the upper left corner in the padded image, int64 (N, 2), 0 to 8.
        mirror: which are mirrored left to right, bool (N,).

    Returns:
        Images of the same shape and type.
    """
    windows = F.pad(images, (PADDING,) * 4).unfold(2, SIZE, 1).unfold(3, SIZE, 1)  # (N, 3, 9, 9, 32, 32), a view
    cut = windows[torch.arange(len(images), device=images.device), :, shift[:, 0], shift[:, 1]]
    return torch.where(mirror.view(-1, 1, 1, 1), cut.flip(-1), cut)


def normalize(images: Tensor) -> Tensor:
    """Map uint8 images (N, 3, H, W) to float ones of about zero mean and unit deviation."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (MEAN, STD))
    return images.float().mul_(1 / (255 * std)).sub_(mean / std)


def read_cifar(root: str | Path, split: str, *, workers: int = 0, cache: bool = False) -> MemoryImages:
    """Read a split of CIFAR-10: from torchvision's own files if ``root`` has them, or else from class folders.

    Args:
        root: holds ``cifar-10-batches-py/``, or class folders in ``train/`` and in ``val/`` or ``test/``.
        split: "train", "val" or "test"; the latter two are one in torchvision's files.
        workers: processes that decode class folders.
        cache: keep the decoded class folders in a file beside them, and read that the next time.

    Raises:
        UsageError: an unknown split.
        DataError: there is no such data, or it is damaged, or an image is not 32x32.
    """
    if (Path(root) / CIFAR10.base_folder).is_dir():
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
    place = Path(folder.root).with_suffix(".cache.safetensors")
    images = _cached(place, folder)
    if images is None:
        images = _decode(folder, workers)
        metadata = {"files": _fingerprint(folder)}
        write_atomically(place, lambda name: save_file({"images": images}, name, metadata))
    return MemoryImages(images, labels, folder.classes)


def _read(path: str) -> Image.Image:
    picture = read_rgb(path)
    if picture.size != (SIZE, SIZE):
        raise DataError(f"{path}: is {'x'.join(map(str, picture.size))}; expected {SIZE}x{SIZE}")
    return picture


def _decode(folder: ImageFolder, workers: int) -> Tensor:
    folder.transform = TF.pil_to_tensor
    chunks = DataLoader(folder, batch_size=250, num_workers=workers)
    bar = tqdm(chunks, desc=f"Reading {folder.root}", disable=None, leave=False)
    return torch.cat([images for images, _ in bar])


def _cached(path: Path, folder: ImageFolder) -> Tensor | None:
    """Return the images in a cache file, or None where there is none of these very files."""
    try:
        with safe_open(path, "pt") as file:
            known = (file.metadata() or {}).get("files") == _fingerprint(folder)
            images: Tensor | None = file.get_tensor("images") if known else None
    except (OSError, SafetensorError):
        return None
    return images


def _fingerprint(folder: ImageFolder) -> str:
    files = [(Path(p).relative_to(folder.root).as_posix(), Path(p).stat()) for p, _ in folder.samples]
    listing = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(listing.encode()).hexdigest()
