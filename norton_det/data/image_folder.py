"""Class folders: a folder for each split with a folder for each class, as read by torchvision's ``ImageFolder``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from norton_det.errors import DataError, UsageError, expect_choice
from norton_det.spec import Spec
from norton_det.storage import is_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue, 0 to 1, with which the published networks are trained."""
SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test",)}
"""Names of the splits, and the possible names of their folders; the first one that exists is used."""


def image_folder(root: str | Path, split: str, loader: Callable[[Any], Any]) -> ImageFolder:
    """Return torchvision's ``ImageFolder`` of a split.

    Args:
        root: the folder that contains the splits.
        split: a key of ``SPLITS``.
        loader: path -> image.

    Raises:
        UsageError: an unknown split.
        DataError: the folder is missing, has no class, or has a class without images.
    """
    expect_choice("split", split, SPLITS)
    names = " or ".join(f"{name}/" for name in SPLITS[split])
    if not is_folder(root):
        raise DataError(f"{root}: no such folder; expected one with class folders in {names}")
    folder = next((Path(root) / name for name in SPLITS[split] if is_folder(Path(root) / name)), None)
    if folder is None:
        raise DataError(f"{root}: has no {names}; expected class folders in it")
    try:
        found = ImageFolder(str(folder), loader=loader)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no class folders with images: {error}") from None
    _check_folders(sorted({Path(path).parent for path, _ in found.samples}))
    return found


def _check_folders(folders: Sequence[Path]) -> None:
    """Check that no folder is there twice, which links can make of it: its images would count twice.

    Raises:
        DataError: one is.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        other = seen.setdefault(folder.resolve(), folder)
        if other != folder:
            raise DataError(f"{folder}: is the same folder as {other}; expected each one once")


def check_classes(train: Sequence[str], val: Sequence[str], root: str | Path) -> None:
    """Check that both splits have the same classes.

    Raises:
        DataError: a class is in one split only.
    """
    if different := sorted(set(train) ^ set(val)):
        raise DataError(f"{root}: only one split has the class {different[0]}; expected the same classes in both")


def match_classes(spec: Spec, classes: Sequence[str], source: str | Path) -> Spec:
    """Check that a classifier has the classes of the data, and return its spec with their names.

    Args:
        spec: spec of the classifier. If it does not name its classes, only their number is checked.
        classes: names of the classes by label.
        source: name of the classifier for the message: its file.

    Raises:
        UsageError: the numbers differ.
        DataError: the names differ. The message lists them.

    Example:
        >>> from norton_det import Spec
        >>> from norton_det.data.image_folder import match_classes
        >>> spec = match_classes(Spec("resnet56_cifar", 2), ["cat", "dog"], "net.pth")
        >>> spec.classes
        ('cat', 'dog')
        >>> match_classes(spec, ["cat", "cow"], "net.pth")
        Traceback (most recent call last):
        norton_det.errors.DataError: net.pth: has other classes than the data: 'dog', not 'cow' (label 1)
    """
    if spec.num_classes != len(classes):
        raise UsageError(f"{source}: has {spec.num_classes} classes; the data has {len(classes)} ({classes[0]}, ...)")
    pairs = enumerate(zip(spec.classes, classes, strict=False))
    if wrong := [f"{ours!r}, not {theirs!r} (label {label})" for label, (ours, theirs) in pairs if ours != theirs]:
        raise DataError(f"{source}: has other classes than the data: {'; '.join(wrong)}")
    return replace(spec, classes=tuple(classes))
