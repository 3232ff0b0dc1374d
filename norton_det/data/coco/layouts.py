"""Where the images and the annotations of a data set are, in the folders that people have or export."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from norton_det.data.coco.held_out import HeldOut
from norton_det.errors import DataError, expect_choice
from norton_det.files import read_json
from norton_det.storage import is_folder

logger = logging.getLogger(__name__)

KINDS = {"coco": "instances", "coco_kp": "person_keypoints"}
"""Names of ``--dataset``, and the beginning of the names of COCO's annotation files."""
_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""What splits are called. Upper and lower case are the same."""


class Layout(NamedTuple):
    """Where one program puts a split: the annotation file, and folders of images, relative to the data's folder.

    A layout without ``{split}`` does not divide the images.
    """

    name: str
    annotations: str
    images: tuple[str, ...]


LAYOUTS = (
    Layout("CVAT", "annotations/{kind}_{split}.json", ("images/{split}", "images")),
    Layout("CVAT", "annotations/{kind}_default.json", ("images/default", "images")),
    Layout("COCO", "annotations/{kind}_{split}{year}.json", ("{split}{year}", "images/{split}{year}")),
    Layout("Roboflow", "{split}/_annotations.coco.json", ("{split}",)),
    Layout("Label Studio", "result.json", (".", "images")),
)
"""The layouts that are recognised. The first one gives the name where two agree."""


@dataclass(frozen=True)
class Split:
    """Where a split of a data set is.

    Attributes:
        images: folder of the images.
        annotations: annotation file.
        layout: name of the layout; empty if the two were named.
        divided: whether the layout divides the images into splits.
        part: which of the annotated images are meant; None: all.
    """

    images: Path
    annotations: Path
    layout: str = ""
    divided: bool = True
    part: HeldOut | None = None


def annotation_file(root: str | Path, split: str, dataset: str) -> Path:
    """Return the path of the annotation file in a folder of COCO 2017; :func:`find_split` finds others.

    Args:
        root: the COCO folder.
        split: "train" or "val".
        dataset: "coco" (instances) or "coco_kp" (person keypoints).

    Raises:
        UsageError: an unknown data set.

    Example:
        >>> from norton_det.data import annotation_file
        >>> annotation_file("coco", "val", "coco_kp").as_posix()
        'coco/annotations/person_keypoints_val2017.json'
    """
    expect_choice("dataset", dataset, KINDS)
    return Path(root) / "annotations" / f"{KINDS[dataset]}_{split}2017.json"


def find_split(
    root: str | Path | None,
    split: str,
    dataset: str = "coco",
    *,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> Split:
    """Return where a split of a data set is, in a folder of any of the :data:`LAYOUTS`. A line with it is logged.

    Args:
        root: the folder; None if the annotations are named.
        split: "train", "val" or another name.
        dataset: "coco" (instances) or "coco_kp" (person keypoints).
        images: folder of the images, if it is not that of the layout; without a ``root`` that of the annotations.
        annotations: annotation file, if it is not that of the layout.
        val_fraction: fraction of the training images that is held out as the split "val", where there is none.
        split_seed: seed of this choice.

    Raises:
        UsageError: an unknown data set, or a fraction that is not between 0 and 1.
        DataError: the folder is missing, or has no layout that is known, or several; or there is no validation set and
            no fraction, or both.

    Example:
        >>> import tempfile
        >>> from norton_det.data import find_split, make_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=1, size=32)
        ...     found = find_split(f"{folder}/shapes", "val")
        >>> found.layout, found.images.name, found.annotations.name
        ('COCO', 'val2017', 'instances_val2017.json')
    """
    expect_choice("dataset", dataset, KINDS)
    part = None if val_fraction is None else HeldOut(val_fraction, split_seed, held_out=split == "val")
    if annotations is not None:
        folder = Path(annotations).parent if root is None else Path(root) / f"{split}2017"
        if images is None and root is not None and not is_folder(folder):
            folder = _find(Path(root), split, dataset, part).images
        found = Split(folder, Path(annotations))
    else:
        found = _find(Path(root or ""), split, dataset, part)
        logger.info("%s: %s layout: %s, images in %s", root, found.layout, found.annotations, found.images)
    return Split(Path(images or found.images), found.annotations, found.layout, found.divided, part)


def has_split(root: str | Path, split: str, dataset: str = "coco") -> bool:
    """Tell whether there are annotations of a split, or of all images, in one of the :data:`LAYOUTS`."""
    return any(True for each in (split, None) for _ in _candidates(Path(root), each, KINDS[dataset]))


def _find(root: Path, split: str, dataset: str, part: HeldOut | None) -> Split:
    if not is_folder(root):
        raise DataError(f"{root}: no such folder; expected one with images and COCO annotations")
    kind = KINDS[dataset]
    own = _only(root, split, _candidates(root, split, kind))
    if split == "val" and part is not None:
        if own is not None:
            raise DataError(f"{root}: has a validation set, {own.annotations}; expected no --val-fraction")
        own = _find(root, "train", dataset, part)
    undivided = _only(root, split, _candidates(root, None, kind)) if own is None else None
    if undivided is not None and split == "val":
        raise DataError(
            f"{root}: {undivided.annotations} is not divided and there is no validation set; "
            "expected --val-fraction, or a folder and a file that are named"
        )
    found = own or undivided
    if found is None:
        names = dict.fromkeys(f"{each.annotations} ({each.name})" for each in LAYOUTS)
        expected = ", ".join(names).format(kind=kind, split=split, year="2017")
        raise DataError(f"{root}: no images for {split} are recognised; expected one of: {expected}")
    return found


def _candidates(root: Path, split: str | None, kind: str) -> Iterator[Split]:
    """Yield the annotation files of a split that exist, with their images; for None those that are not divided."""
    fields = {"kind": re.escape(kind), "split": "|".join(_NAMES.get(split or "", (re.escape(split or ""),)))}
    for layout in LAYOUTS:
        if ("{split}" in layout.annotations) != (split is not None):
            continue
        pattern = re.sub(
            r"\\\{(\w+)\\\}",
            lambda name: f"(?P<{name[1]}>{fields.get(name[1], '[0-9]*')})",
            re.escape(layout.annotations),
        )
        for path in sorted(root.glob(re.sub(r"(\{\w+\}_?)+", "*", layout.annotations))):
            if match := re.fullmatch(pattern, path.relative_to(root).as_posix(), re.IGNORECASE):
                folders = [root / folder.format(**match.groupdict()) for folder in layout.images]
                yield Split(_with_images(folders, path), path, layout.name, divided=split is not None)


def _with_images(folders: Iterable[Path], annotations: Path) -> Path:
    """Return the folder in which the first annotated image is; if none exists, the first one."""
    first, *others = [folder for folder in folders if is_folder(folder)] or list(folders)[:1]
    if not others:
        return first
    entries: Any = read_json(annotations, dict, "COCO annotations").get("images")
    entry = entries[0] if isinstance(entries, list) and entries else None
    name = entry.get("file_name") if isinstance(entry, Mapping) else None
    return next((folder for folder in (first, *others) if os.path.isfile(folder / str(name))), first)  # noqa: PTH113  of any name


def _only(root: Path, split: str, candidates: Iterable[Split]) -> Split | None:
    """Return the one candidate whose images exist, or else one whose images are missing; None if there is none."""
    places = {(each.annotations, each.images): each for each in reversed(list(candidates))}
    complete = [each for each in places.values() if is_folder(each.images)]
    if len(complete) > 1:
        names = "; ".join(f"{each.annotations} with {each.images} ({each.layout})" for each in reversed(complete))
        raise DataError(f"{root}: several sets of images for {split}: {names}; expected one, or files that are named")
    return next(iter(complete or places.values()), None)
