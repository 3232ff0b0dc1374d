"""Images without labels, on which a compressed network is calibrated."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.data.batching import hold_out
from norton_det.data.cifar import SIZE, normalize, read_cifar
from norton_det.data.image_folder import image_folder, read_rgb
from norton_det.data.imagenet import Preset
from norton_det.errors import DataError, UsageError
from norton_det.files import IMAGE_SUFFIXES
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection


def read_unlabelled(
    root: str | Path, arch: str, count: int, *, holdout: int = 0, seed: int = 0
) -> Tensor | list[Tensor]:
    """Return training images drawn from a folder, prepared as a network takes them for evaluation.

    Args:
        root: a COCO folder (``train2017/``), class folders in ``train/``, or CIFAR-10 as torchvision has it.
        arch: registered name of the network's architecture.
        count: how many; all, where there are fewer. More of them begin with the same ones.
        holdout: how many images are left out, those of :func:`norton_det.data.batching.hold_out`.
        seed: of the draw.

    Returns:
        For a classifier float (N, 3, S, S), normalised; for a detector N images (3, H, W) between 0 and 1.

    Raises:
        UsageError: count below 1, or nothing is left.
        DataError: there is no such data, an image cannot be read, or is not of the only size the network takes.
    """
    if count < 1:
        raise UsageError(f"count of calibration images is {count}; expected at least 1")
    architecture = ARCHITECTURES[arch]
    small = architecture.dataset == "cifar10"
    if small and (Path(root) / CIFAR10.base_folder).is_dir():
        images = read_cifar(root, "train").images
        return normalize(images[_draw(len(images), count, holdout, seed)])
    paths = _files(root)
    chosen = [paths[i] for i in _draw(len(paths), count, holdout, seed).tolist()]
    bar = tqdm(chosen, desc=f"Reading {root}", disable=None, leave=False)
    if architecture.task.name == Detection.name:
        return [TF.pil_to_tensor(read_rgb(path)).float() / 255 for path in bar]
    if not small:
        prepare = Preset().evaluation()
        return torch.stack([prepare(read_rgb(path)) for path in bar])
    return normalize(torch.stack([_small(path) for path in bar]))


def _draw(total: int, count: int, holdout: int, seed: int) -> Tensor:
    numbers = hold_out(total, holdout)[0] if holdout else torch.arange(total)
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return numbers[order[:count]]


def _files(root: str | Path) -> list[str]:
    folder = Path(root) / "train2017"
    if not folder.is_dir():
        return [path for path, _ in image_folder(root, "train", loader=read_rgb).samples]
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no image; expected files ending with {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def _small(path: str) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(read_rgb(path))
    if pixels.shape[1:] != (SIZE, SIZE):
        raise DataError(f"{path}: is {pixels.shape[2]}x{pixels.shape[1]}; expected {SIZE}x{SIZE}")
    return pixels
