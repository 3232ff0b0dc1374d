"""The image sets of classification by name."""

from pathlib import Path

from norton_det.data.cifar import MemoryImages, read_cifar
from norton_det.data.imagenet import FolderImages, Preset, read_imagenet
from norton_det.errors import UsageError

DATASETS = ("cifar10", "imagenet")
ImageSet = MemoryImages | FolderImages


def read_images(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    preset: Preset | None = None,
    workers: int = 0,
    cache: bool = False,
) -> ImageSet:
    """Return a split of a data set: "cifar10" in memory, "imagenet" read while it is used.

    Args:
        dataset: one of ``DATASETS``.
        root: the folder that holds its splits.
        split: "train", "val" (the folder ``test/`` where there is no ``val/``) or "test".
        preset: how photographs are prepared; of cifar10, None.
        workers: processes that read.
        cache: of cifar10: keep the decoded images in a file.

    Raises:
        UsageError: an unknown name.
        DataError: there is no such data, or it is damaged.
    """
    if dataset == "cifar10":
        return read_cifar(root, split, workers=workers, cache=cache)
    if dataset == "imagenet":
        return read_imagenet(root, split, preset=preset or Preset(), workers=workers)
    raise UsageError(f"unknown dataset {dataset!r}; expected one of: {', '.join(DATASETS)}")
