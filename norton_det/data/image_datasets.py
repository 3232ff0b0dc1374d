"""Data sets of image classification by name."""

from pathlib import Path

from norton_det.data.cifar import MemoryImages, read_cifar
from norton_det.data.imagenet import FolderImages, Preset, read_imagenet
from norton_det.errors import expect_choice

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
    """Return a split of a data set: "cifar10" is read into memory, "imagenet" on demand.

    Args:
        dataset: one of ``DATASETS``.
        root: the folder that contains the splits.
        split: "train", "val" (the folder ``test/`` if there is no ``val/``) or "test".
        preset: preparation of the images of imagenet; None: the default.
        workers: number of processes that read images.
        cache: for class folders of cifar10: store the decoded images in a file.

    Raises:
        UsageError: an unknown name.
        DataError: the data are missing or damaged.
    """
    expect_choice("dataset", dataset, DATASETS)
    if dataset == "cifar10":
        return read_cifar(root, split, workers=workers, cache=cache)
    return read_imagenet(root, split, preset=preset or Preset(), workers=workers)
