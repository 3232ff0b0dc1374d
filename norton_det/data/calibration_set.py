"""The calibration set: images without labels, on which a compressed network is calibrated."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.data.batching import hold_out
from norton_det.data.cifar import SIZE, normalize, read_cifar
from norton_det.data.coco.layouts import KINDS
from norton_det.data.image_folder import image_folder
from norton_det.data.imagenet import Preset
from norton_det.errors import DataError, UsageError, expect_choice
from norton_det.files import IMAGE_SUFFIXES
from norton_det.image_files import AnnotatedSizes, read_image, read_rgb
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection


def read_calibration_set(
    root: str | Path, arch: str, count: int, *, holdout: int = 0, seed: int = 0
) -> Tensor | list[Tensor]:
    """Return randomly selected training images, prepared as for evaluation.

    Args:
        root: a COCO folder (``train2017/``), a folder with class folders in ``train/``, or a folder with CIFAR-10 as
            torchvision stores it.
        arch: registered name of the network's architecture.
        count: number of images; all images if there are fewer. A larger set begins with the images of a smaller one.
        holdout: number of held-out images (:func:`norton_det.data.batching.hold_out`), which are not selected.
        seed: seed of the selection.

    Returns:
        For a classifier float (N, 3, S, S), normalised; for a detector N images (3, H, W) with values from 0 to 1,
        turned upright by EXIF unless the folder's annotations have the stored size.

    Raises:
        UsageError: ``count`` is below 1, or ``holdout`` leaves no image.
        DataError: the data are missing, or an image cannot be read or does not have the size of the network's inputs.
    """
    if count < 1:
        raise UsageError(f"number of calibration images is {count}; expected at least 1")
    architecture = ARCHITECTURES[arch]
    expect_choice(f"data set of {arch}", architecture.dataset, ("cifar10", "imagenet", "coco", "coco_kp"))
    small = architecture.dataset == "cifar10"
    if small and (Path(root) / CIFAR10.base_folder).is_dir():
        images = read_cifar(root, "train").images
        return normalize(images[_select(len(images), count, holdout, seed)])
    paths = _files(root)
    selected = [paths[i] for i in _select(len(paths), count, holdout, seed).tolist()]
    bar = tqdm(selected, desc=f"Reading {root}", disable=None, leave=False)
    if architecture.task.name == Detection.name:
        sizes = _annotated_sizes(root)
        return [TF.pil_to_tensor(read_image(path, sizes).rgb).float() / 255 for path in bar]
    if not small:
        prepare = Preset().evaluation()
        return torch.stack([prepare(read_rgb(path)) for path in bar])
    return normalize(torch.stack([_read_small(path) for path in bar]))


def _select(total: int, count: int, holdout: int, seed: int) -> Tensor:
    indices = hold_out(total, holdout)[0] if holdout else torch.arange(total)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return indices[order[:count]]


def _files(root: str | Path) -> list[str]:
    folder = Path(root) / "train2017"
    if not folder.is_dir():
        return [path for path, _ in image_folder(root, "train", loader=read_rgb).samples]
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no image; expected files ending with {', '.join(IMAGE_SUFFIXES)}")
    return paths


def _annotated_sizes(root: str | Path) -> AnnotatedSizes:
    paths = [Path(root) / "annotations" / f"{kind}_train2017.json" for kind in KINDS.values()]
    return AnnotatedSizes(next((path for path in paths if path.is_file()), None))


def _read_small(path: str) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(read_rgb(path))
    if pixels.shape[1:] != (SIZE, SIZE):
        raise DataError(f"{path}: is {pixels.shape[2]}x{pixels.shape[1]}; expected {SIZE}x{SIZE}")
    return pixels
