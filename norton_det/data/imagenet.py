"""ImageNet, or any class folders of photographs: torchvision's transforms, read by several processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.autoaugment import AutoAugmentPolicy

from norton_det.data.batching import Batching
from norton_det.data.image_folder import MEAN, STD, image_folder, read_rgb
from norton_det.data.loader import load
from norton_det.errors import UsageError

POLICIES = ("ra", "ta_wide", "augmix", *(policy.value for policy in AutoAugmentPolicy))
INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)


@dataclass(frozen=True)
class Preset:
    """How photographs are prepared; names and defaults are those of torchvision's reference script.

    Attributes:
        train_crop_size: side of the random crop for training.
        val_resize_size: length of the shorter side for evaluation.
        val_crop_size: side of the crop from its centre.
        interpolation: name of the interpolation.
        auto_augment: name of a policy, or None.
        ra_magnitude: of RandAugment.
        augmix_severity: of AugMix.
        random_erase: probability that a rectangle is erased.

    Raises:
        UsageError: an unknown name.
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
        if self.auto_augment not in (None, *POLICIES):
            raise UsageError(f"unknown auto_augment {self.auto_augment!r}; expected one of: {', '.join(POLICIES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"unknown interpolation {self.interpolation!r}; expected one of: {', '.join(INTERPOLATIONS)}"
            )

    def training(self) -> Any:
        """Return the transform of a picture for training."""
        mode = InterpolationMode(self.interpolation)
        steps = [v2.RandomResizedCrop(self.train_crop_size, interpolation=mode, antialias=True)]
        steps.append(v2.RandomHorizontalFlip())
        steps += self._policy(mode)
        steps += _to_tensor()
        if self.random_erase > 0:
            steps.append(v2.RandomErasing(p=self.random_erase))
        return v2.Compose(steps)

    def evaluation(self) -> Any:
        """Return the transform of a picture for evaluation."""
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
    """A set of image files.

    Args:
        samples: file and label of each image.
        classes: name of each label.
        preset: how the images are prepared.
        workers: processes that do it.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], classes: list[str], preset: Preset, workers: int) -> None:
        self.samples, self.classes = samples, classes
        self.preset, self.workers = preset, workers

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, numbers: Tensor) -> "FolderImages":
        """Return the set of the images with these numbers, int64 (M,)."""
        return FolderImages([self.samples[i] for i in numbers.tolist()], self.classes, self.preset, self.workers)

    def to(self, device: torch.device) -> "FolderImages":
        """Return the set itself: its batches are made by processes without a device."""
        return self

    def training(self, batching: Batching, epoch: int, start: int = 0) -> Any:
        """Return the batches of an epoch from number ``start`` on: images float (B, 3, S, S), labels (B,)."""
        count, generator = len(self), batching.generator(epoch)
        order = torch.randperm(count, generator=generator)
        seeds = torch.randint(2**62, (count,), generator=generator)
        parts = batching.training(count, start)
        items = _Transformed(self.samples, self.preset.training())
        return load(items, order, seeds, parts, workers=self.workers)

    def evaluation(self, batching: Batching) -> Any:
        """Return batches of the images, resized and cut from the centre: float (B, 3, S, S), labels (B,)."""
        count = len(self)
        items = _Transformed(self.samples, self.preset.evaluation())
        seeds = torch.zeros(count, dtype=torch.int64)  # nothing is random
        return load(items, torch.arange(count), seeds, batching.evaluation(count), workers=self.workers)


class _Transformed:
    """Images by number."""

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path, label = self.samples[number]
        return self.transform(read_rgb(path)), label


def read_imagenet(root: str | Path, split: str, *, preset: Preset, workers: int = 0) -> FolderImages:
    """Return a split of ImageNet from class folders in ``train/`` and in ``val/`` or ``test/``.

    Raises:
        UsageError: an unknown split.
        DataError: a folder is missing or empty.
    """
    folder = image_folder(root, split, loader=read_rgb)
    return FolderImages(folder.samples, folder.classes, preset, workers)
