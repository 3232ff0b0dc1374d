"""Data sets in COCO's format, in folders of COCO and other layouts."""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from norton_det.data.coco.checks import check_annotations, raise_errors
from norton_det.data.coco.checks.annotations import INDEXING, reading_checks
from norton_det.data.coco.checks.fields import is_area
from norton_det.data.coco.held_out import HeldOut
from norton_det.data.coco.image_paths import image_path
from norton_det.data.coco.labels import Labels, class_categories, keypoint_names
from norton_det.data.coco.layouts import Split, find_split
from norton_det.data.coco.pixels import PixelReader
from norton_det.errors import DataError
from norton_det.files import read_json
from norton_det.spec import Spec
from norton_det.storage import is_folder

logger = logging.getLogger(__name__)
_MIN_VISIBLE, _OF_KEYPOINTS = 10, 17  # torchvision's rule for COCO's persons

Target = dict[str, Any]
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


def read_coco(path: str | Path, part: HeldOut | None = None) -> Any:
    """Return the ``pycocotools.coco.COCO`` object of an annotation file, without categories that only group others.

    Args:
        path: the file.
        part: which of the images are read; None: all.

    Raises:
        DataError: the file is missing, is not JSON, or does not contain COCO annotations; an entry lacks an id, a file
            name or a size, or ids are of different kinds.
    """
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = read_json(path, dict, "COCO annotations")
    try:
        findings = check_annotations(coco.dataset, only=INDEXING)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    raise_errors(findings, path)
    coco.dataset["categories"] = class_categories(coco.dataset)
    if part is not None:
        coco.dataset = part.of(coco.dataset, path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def annotated_images(found: Split) -> list[Path]:
    """Return the image files of a split, sorted.

    Raises:
        DataError: as of :func:`read_coco`.
    """
    entries = read_coco(found.annotations, found.part).dataset["images"]
    return sorted(image_path(found.images, entry) for entry in entries)


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and targets in the format of torchvision's detectors.

    An item is an image, float (3, H, W) with values from 0 to 1, and a target with ``boxes`` (N, 4) as x1, y1, x2, y2
    in pixels, ``labels`` (N,), ``image_id``, ``area`` (N,) in square pixels, ``iscrowd`` (N,), and optionally ``masks``
    (N, H, W) uint8 and ``keypoints`` (N, K, 3) as x, y, visibility. The labels are 1 to N in the order of the category
    ids, or after :meth:`match` those of a detector.

    The annotations are checked (see :mod:`norton_det.data.coco.checks`), for training more than for evaluation. For
    training, crowds, objects whose boxes have no area, images without objects, and in a keypoint data set images with
    few visible keypoints are left out. A line with their number is logged.

    Objects of categories without keypoints have invisible keypoints in a keypoint data set. Where the area of an object
    is missing or wrong, it is that of its box.

    Args:
        root: the folder, see :func:`norton_det.data.coco.layouts.find_split`; None if ``images`` and ``annotations``
            are given.
        split: "train" or "val".
        dataset: "coco" (instances) or "coco_kp" (person keypoints).
        train: check the data and leave out what training cannot use.
        masks: read the masks.
        transform: (image, target) -> (image, target).
        images: folder of the images, if it is not that of the split in ``root``.
        annotations: annotation file, if it is not that of the split in ``root``.
        val_fraction: fraction of the training images that is held out as the split "val", where there is none.
        split_seed: seed of this choice.

    Raises:
        UsageError: an unknown data set, or a wrong fraction.
        DataError: the folder or the annotation file is missing or damaged, the annotations have errors that would
            spoil the training, no image is left, or (when an item is read) an image cannot be read.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=1, size=64)
        ...     image, target = CocoDataset(f"{folder}/shapes", "val", masks=True)[0]
        >>> image.shape, len(target["boxes"]) == len(target["masks"])
        (torch.Size([3, 64, 64]), True)
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str,
        dataset: str = "coco",
        *,
        train: bool = False,
        masks: bool = False,
        transform: Transform | None = None,
        images: str | Path | None = None,
        annotations: str | Path | None = None,
        val_fraction: float | None = None,
        split_seed: int = 0,
    ) -> None:
        named = {"images": images, "annotations": annotations}
        found = find_split(root, split, dataset, **named, val_fraction=val_fraction, split_seed=split_seed)
        self.folder, self.annotations = found.images, found.annotations
        self.coco = read_coco(found.annotations, found.part)
        if not is_folder(self.folder):
            raise DataError(f"{self.folder}: no such folder; expected the images of {self.annotations}")
        self.train, self.masks, self.keypoints, self.transform = train, masks, dataset == "coco_kp", transform
        self._check()
        self._categories = self.coco.dataset["categories"]
        self.labels = Labels.new(self._categories)
        self._read = PixelReader()
        self.ids = sorted(self.coco.imgs)
        if train:
            self._leave_out()
            self._tell_of_objects_left_out()
        if not self.ids:
            raise DataError(
                f"{self.annotations}: no image that can be used for {'training' if train else 'evaluation'}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes of a detector with the labels of this data set, the background included."""
        return len(self.labels.classes)

    @property
    def keypoint_names(self) -> list[str]:
        """Names of the keypoints; an empty list if there are none, or if they are not read."""
        return keypoint_names(self._categories) if self.keypoints else []

    def match(self, spec: Spec, detector: str | Path) -> None:
        """Use the labels of a detector, matched by the names of the classes.

        Args:
            spec: spec of the detector.
            detector: name of the detector in messages: its file.

        Raises:
            DataError: the data set has classes or keypoints that the detector does not have.
        """
        self.labels = Labels.match(spec, self._categories, detector=detector, data=self.annotations)

    def aspect_ratios(self) -> list[float]:
        """Return width / height of each image, computed from the annotations."""
        return [self.coco.imgs[i]["width"] / self.coco.imgs[i]["height"] for i in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image_id = self.ids[index]
        entry = self.coco.imgs[image_id]
        image = self._read(self.folder, entry)
        target = self._target(image_id, *image.shape[-2:])
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target

    def name_of(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.folder / self.coco.imgs[self.ids[index]]["file_name"])

    def _check(self) -> None:
        """Refuse annotations that cannot be read, and before a training also those that would spoil it."""
        reads = {"area": False, "segmentation": self.masks, "keypoints": self.keypoints}
        unread = [field for field, read in reads.items() if not read]
        only = None if self.train else reading_checks(unread)
        options: dict[str, Any] = {"masks": self.masks, "keypoints": self.keypoints, "only": only, "unread": unread}
        raise_errors(check_annotations(self.coco.dataset, **options), self.annotations)

    def _leave_out(self) -> None:
        """Leave out the images that training cannot use."""
        reasons = {i: self._fault(i) for i in self.ids}
        self.ids = [i for i, reason in reasons.items() if not reason]
        if counts := Counter(filter(None, reasons.values())):
            texts = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            logger.info(
                "%s: %d of %d images are left out of training: %s",
                self.annotations,
                counts.total(),
                len(reasons),
                texts,
            )

    def _fault(self, image_id: int) -> str:
        """Return why an image is not used for training, or an empty text."""
        usable = [a for a in self._objects(image_id) if self._has_area(a)]
        if not usable:
            return "without objects that can be used"
        if not self.keypoints:
            return ""
        visible = sum(v > 0 for a in usable for v in self._points(a)[2::3])
        minimum = max(1, _MIN_VISIBLE * len(self.keypoint_names) // _OF_KEYPOINTS)
        return "" if visible >= minimum else f"with fewer than {minimum} visible keypoints"

    def _points(self, annotation: dict[str, Any]) -> list[float]:
        """Return the flat keypoints of an object; if its category has none, as many that are invisible."""
        category = self.coco.cats.get(annotation["category_id"], {})
        none = [0.0] * 3 * len(self.keypoint_names)
        return annotation["keypoints"] if category.get("keypoints") else none

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        return [a for a in self.coco.imgToAnns[image_id] if not a.get("iscrowd", 0)]

    def _has_area(self, annotation: dict[str, Any]) -> bool:
        """Return whether the part of a box that is within its image has an area."""
        image, (x, y, width, height) = self.coco.imgs[annotation["image_id"]], annotation["bbox"]
        return _has_extent(x, width, image["width"]) and _has_extent(y, height, image["height"])

    def _tell_of_objects_left_out(self) -> None:
        if crowds := sum(a.get("iscrowd", 0) for a in self.coco.dataset["annotations"]):
            logger.info("%s: %d crowds are left out of training", self.annotations, crowds)
        count = sum(not self._has_area(a) for i in self.coco.imgs for a in self._objects(i))
        if count:
            logger.warning("%s: %d objects whose box has no area are left out of training", self.annotations, count)

    def _target(self, image_id: int, height: int, width: int) -> Target:
        annotations = self._objects(image_id) if self.train else self.coco.imgToAnns[image_id]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": self.labels.of(annotations),
            "area": torch.tensor([_area(a) for a in annotations], dtype=torch.float32),
            "iscrowd": torch.tensor([a.get("iscrowd", 0) for a in annotations], dtype=torch.int64),
        }
        if self.masks:
            masks = [self.coco.annToMask(a) for a in annotations]
            stacked = np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        if self.keypoints:
            points = torch.tensor([self._points(a) for a in annotations], dtype=torch.float32)
            target["keypoints"] = points.reshape(-1, len(self.keypoint_names), 3)
        if self.train:
            target = drop_degenerate(target)
        return {**target, "image_id": image_id}


def _has_extent(start: float, extent: float, limit: int) -> bool:
    """Return whether the part of a side of a box that is within its image has a length, in the dtype of the target."""
    if start >= 0 and extent >= 1 and start + extent <= limit:
        return True
    first = np.float32(start)
    return bool(np.clip(first + np.float32(extent), 0, limit) > np.clip(first, 0, limit))


def _area(annotation: dict[str, Any]) -> float:
    return float(area if is_area(area := annotation.get("area", -1)) else annotation["bbox"][2] * annotation["bbox"][3])


def drop_degenerate(target: Target) -> Target:
    """Return a target without the objects whose boxes have no width or no height."""
    boxes = target["boxes"]
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if keep.all():
        return target
    kept = {}
    for name, value in target.items():
        per_object = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(keep)
        kept[name] = tv_tensors.wrap(value[keep], like=value) if per_object else value
    return kept


def collate(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Return a batch as lists of images and targets, because the images differ in size."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
