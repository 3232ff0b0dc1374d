"""ImageNet and other class folders of photographs, with torchvision's transforms, read by several processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.autoaugment import AutoAugmentPolicy

from norton_det.data.batching import Batching
from norton_det.data.image_folder import MEAN, STD, image_folder
from norton_det.data.loader import load
from norton_det.errors import expect_choice
from norton_det.image_files import read_rgb

POLICIES = ("ra", "ta_wide", "augmix", *(policy.value for policy in AutoAugmentPolicy))
INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)


@dataclass(frozen=True)
class Preset:
    """Preparation of photographs, with the names and defaults of torchvision's reference script.

    Attributes:
        train_crop_size: side length in pixels of the random crop for training.
        val_resize_size: length in pixels of the shorter side for evaluation.
        val_crop_size: side length in pixels of the centre crop for evaluation.
        interpolation: name of the interpolation.
        auto_augment: name of an augmentation policy, or None.
        ra_magnitude: magnitude of RandAugment.
        augmix_severity: severity of AugMix.
        random_erase: probability that a rectangle is erased.

    Raises:
        UsageError: an unknown interpolation or policy.

    Example:
        >>> from PIL import Image
        >>> from norton_det.data.imagenet import Preset
        >>> Preset(val_crop_size=64).evaluation()(Image.new("RGB", (300, 200))).shape
        torch.Size([3, 64, 64])
    """

    train_crop_size: int = 224
    val_resize_size: int = 256
    val_crop_size: int = 224
    interpolation: str = "bilinear"
    auto_augment: str | None = None
    ra_magnitude: int = 9
    augmix_severity: int = 3
    random_erase: float = 0.0

    def __post_init__(self) -> None:
        if self.auto_augment is not None:
            expect_choice("auto_augment", self.auto_augment, POLICIES)
        expect_choice("interpolation", self.interpolation, INTERPOLATIONS)

    def training(self) -> Any:
        """Return the transform for training: PIL image -> float (3, S, S), normalised."""
        mode = InterpolationMode(self.interpolation)
        steps = [v2.RandomResizedCrop(self.train_crop_size, interpolation=mode, antialias=True)]
        steps.append(v2.RandomHorizontalFlip())
        steps += self._policy(mode)
        steps += _to_tensor()
        if self.random_erase > 0:
            steps.append(v2.RandomErasing(p=self.random_erase))
        return v2.Compose(steps)

    def evaluation(self) -> Any:
        """Return the transform for evaluation: PIL image -> float (3, S, S), normalised."""
        mode = InterpolationMode(self.interpolation)
        resize = v2.Resize(self.val_resize_size, interpolation=mode, antialias=True)
        return v2.Compose([resize, v2.CenterCrop(self.val_crop_size), *_to_tensor()])

    def _policy(self, mode: InterpolationMode) -> list[nn.Module]:
        if self.auto_augment is None:
            return []
        if self.auto_augment == "ra":
            return [v2.RandAugment(magnitude=self.ra_magnitude, interpolation=mode)]
        if self.auto_augment == "ta_wide":
            return [v2.TrivialAugmentWide(interpolation=mode)]
        if self.auto_augment == "augmix":
            return [v2.AugMix(severity=self.augmix_severity, interpolation=mode)]
        return [v2.AutoAugment(AutoAugmentPolicy(self.auto_augment), interpolation=mode)]


def _to_tensor() -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


class FolderImages:
    """A data set of image files.

    Args:
        samples: path and label of each image.
        classes: name of each label.
        preset: preparation of the images.
        workers: number of processes that read and prepare them.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], classes: list[str], preset: Preset, workers: int) -> None:
        self.samples, self.classes = samples, classes
        self.preset, self.workers = preset, workers

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, indices: Tensor) -> "FolderImages":
        """Return the data set of the images with these indices, int64 (M,)."""
        return FolderImages([self.samples[i] for i in indices.tolist()], self.classes, self.preset, self.workers)

    def to(self, device: torch.device) -> "FolderImages":
        """Return the data set itself: its batches are made on the CPU."""
        return self

    def training(self, batching: Batching, epoch: int, start: int = 0) -> Any:
        """Return the batches of an epoch, beginning with number ``start``: images (B, 3, S, S) and labels (B,)."""
        count, generator = len(self), batching.generator(epoch)
        order = torch.randperm(count, generator=generator)
        seeds = torch.randint(2**62, (count,), generator=generator)
        parts = batching.training(count, start)
        items = _Transformed(self.samples, self.preset.training())
        return load(items, order, seeds, parts, workers=self.workers)

    def evaluation(self, batching: Batching) -> Any:
        """Return batches of images (B, 3, S, S), resized and cropped at the centre, and labels (B,)."""
        count = len(self)
        items = _Transformed(self.samples, self.preset.evaluation())
        return load(items, torch.arange(count), None, batching.evaluation(count), workers=self.workers)


class _Transformed:
    """Transformed images and their labels, by index."""

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(read_rgb(path)), label

    def name_of(self, index: int) -> str:
        """Return the file of an image."""
        return self.samples[index][0]


def read_imagenet(root: str | Path, split: str, *, preset: Preset, workers: int = 0) -> FolderImages:
    """Return a split of ImageNet from class folders in ``train/`` and in ``val/`` or ``test/``.

    Raises:
        UsageError: an unknown split.
        DataError: a folder is missing or empty.
    """
    folder = image_folder(root, split, loader=read_rgb)
    return FolderImages(folder.samples, folder.classes, preset, workers)
