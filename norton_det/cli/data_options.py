"""Arguments that say where the images and annotations of a data set are, for the commands that read COCO's format."""

import argparse
import math
from collections.abc import Mapping
from typing import Any

from norton_det.cli.numbers import SEED, Number
from norton_det.cli.options import Group
from norton_det.data.coco.layouts import KINDS
from norton_det.errors import UsageError

FOLDER = "folder as of COCO, Roboflow, CVAT or Label Studio: docs/own_data.md"
"""What ``--data-path`` is."""
FILES = ("train_images", "train_annotations", "val_images", "val_annotations")
_DIVISION = ("val_fraction", "split_seed")


def add_dataset(group: Group) -> None:
    """Add ``--dataset``."""
    group.add_argument("--dataset", default="coco", choices=[*KINDS], metavar="NAME", help="instances or keypoints")


def add_division(group: Group) -> None:
    """Add how training images are divided where there is no validation set."""
    text = "fraction of the training images that is held out for validation, if there is no validation set"
    group.add_argument("--val-fraction", type=Number(0, 1, above=True), metavar="F", help=text)
    group.add_argument("--split-seed", default=0, type=SEED, metavar="K", help="of --val-fraction (default: 0)")


def add_files(group: Group) -> None:
    """Add the files of both splits."""
    for split, images in (("train", "training"), ("val", "validation")):
        group.add_argument(f"--{split}-images", metavar="DIR", help=f"{images} images, if not of --data-path")
        group.add_argument(f"--{split}-annotations", metavar="FILE", help="their annotations in COCO's format")


def add_keypoint_sigmas(group: Group) -> None:
    """Add ``--keypoint-sigmas``."""
    text = (
        "tolerance of each keypoint in the evaluation, or one for all "
        "(default: COCO's of its 17 keypoints of persons, 0.05 for others)"
    )
    group.add_argument("--keypoint-sigmas", nargs="+", type=tolerance, metavar="S", help=text)


def tolerance(text: str) -> float:
    """Return the tolerance that an argument is; a ``type`` for ``add_argument``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance; expected a number above 0")
    return value


def check_files(args: argparse.Namespace) -> None:
    """Refuse half of what :func:`add_files` names, and a division of images that need none.

    Raises:
        UsageError: an argument lacks its partner, or ``--val-fraction`` has one too many.
    """
    for images, annotations in (FILES[:2], FILES[2:]):
        given, missing = (images, annotations) if getattr(args, images) else (annotations, images)
        if getattr(args, given) and not getattr(args, missing):
            raise UsageError(f"{_flag(given)} {getattr(args, given)}: expected {_flag(missing)} as well")
    if args.val_images and args.val_fraction is not None:
        raise UsageError(f"--val-fraction {args.val_fraction:g} with --val-images: expected one of the two")
    if args.train_images and not args.val_images and args.val_fraction is None:
        raise UsageError("--train-images without a validation set; expected --val-images or --val-fraction")


def files_of(args: argparse.Namespace, split: str) -> dict[str, Any]:
    """Return the arguments of :class:`~norton_det.data.CocoDataset` that say where a split is.

    Args:
        args: of the command, with those of :func:`add_files`.
        split: "train" or "val".
    """
    named = split if getattr(args, f"{split}_images") or args.val_fraction is None else "train"
    return {
        "images": getattr(args, f"{named}_images"),
        "annotations": getattr(args, f"{named}_annotations"),
        **division_of(args),
    }


def division_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`add_division`."""
    return {name: getattr(args, name) for name in _DIVISION}


def check_division(args: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """Check that the images are divided as they were in a run that is resumed: none may be learnt and then tested on.

    Args:
        args: of the command.
        before: arguments of the run.

    Raises:
        UsageError: the division is another one.
    """
    for name in _DIVISION:
        value, old = getattr(args, name), before.get(name, getattr(args, name))
        if value != old:
            raise UsageError(f"{_flag(name)} is {value}; the run that is resumed has {old}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
