"""The calibration set: images without labels, on which a compressed network is calibrated."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.data.batching import hold_out
from norton_det.data.cifar import SIZE, normalize, read_cifar
from norton_det.data.coco.dataset import annotated_images
from norton_det.data.coco.layouts import KINDS, find_split, has_split
from norton_det.data.image_folder import image_folder
from norton_det.data.imagenet import Preset
from norton_det.errors import DataError, UsageError, expect_choice
from norton_det.files import IMAGE_SUFFIXES
from norton_det.image_files import AnnotatedSizes, read_image, read_rgb
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.storage import is_folder


def read_calibration_set(
    root: str | Path,
    arch: str,
    count: int,
    *,
    holdout: int = 0,
    seed: int = 0,
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> Tensor | list[Tensor]:
    """Return randomly selected training images, prepared as for evaluation.

    Args:
        root: a folder with COCO annotations (:func:`norton_det.data.coco.layouts.find_split`), or with ``train2017/``
            alone; a folder with class folders in ``train/``, or with CIFAR-10 as torchvision stores it.
        arch: registered name of the network's architecture.
        count: number of images; all images if there are fewer. A larger set begins with the images of a smaller one.
        holdout: number of held-out images (:func:`norton_det.data.batching.hold_out`), which are not selected.
        seed: seed of the selection.
        val_fraction: fraction of the annotated images that is held out as the validation set; none is selected of it.
        split_seed: seed of this choice.

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
    if small and is_folder(Path(root) / CIFAR10.base_folder):
        images = read_cifar(root, "train").images
        return normalize(images[_select(len(images), count, holdout, seed)])
    paths, annotations = _files(root, val_fraction, split_seed)
    selected = [paths[i] for i in _select(len(paths), count, holdout, seed).tolist()]
    bar = tqdm(selected, desc=f"Reading {root}", disable=None, leave=False)
    if architecture.task.name == Detection.name:
        sizes = AnnotatedSizes(annotations)
        return [TF.pil_to_tensor(read_image(path, sizes).rgb).float() / 255 for path in bar]
    if not small:
        prepare = Preset().evaluation()
        return torch.stack([prepare(read_rgb(path)) for path in bar])
    return normalize(torch.stack([_read_small(path) for path in bar]))


def _select(total: int, count: int, holdout: int, seed: int) -> Tensor:
    indices = hold_out(total, holdout)[0] if holdout else torch.arange(total)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return indices[order[:count]]


def _files(root: str | Path, val_fraction: float | None, split_seed: int) -> tuple[list[str], Path | None]:
    """Return the training images, and their annotations if there are any."""
    dataset = next((dataset for dataset in KINDS if has_split(root, "train", dataset)), None)
    folder, annotations = Path(root) / "train2017", None
    if dataset is not None:
        found = find_split(root, "train", dataset, val_fraction=val_fraction, split_seed=split_seed)
        folder, annotations = found.images, found.annotations
        if folder.name != "train2017" or found.part:
            return [str(path) for path in annotated_images(found)], annotations
    elif val_fraction is not None:
        raise DataError(
            f"{root}: no COCO annotations are recognised; expected some, to hold out images (--val-fraction)"
        )
    if not is_folder(folder):
        return [path for path, _ in image_folder(root, "train", loader=read_rgb).samples], None
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no image; expected files ending with {', '.join(IMAGE_SUFFIXES)}")
    return paths, annotations


def _read_small(path: str) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(read_rgb(path))
    if pixels.shape[1:] != (SIZE, SIZE):
        raise DataError(f"{path}: is {pixels.shape[2]}x{pixels.shape[1]}; expected {SIZE}x{SIZE}")
    return pixels
