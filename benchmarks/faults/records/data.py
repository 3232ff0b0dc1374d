"""The sound data that the cases change, and what was read of it."""

import copy
import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torch import Tensor

import norton_det as nd
from benchmarks.faults.records.harmless import SAME, Renamed
from norton_det.builders import make_detector
from norton_det.data import CocoDataset, annotation_file, make_shapes
from norton_det.data.coco.labels import BACKGROUND

TRAIN, VAL, SIDE = 8, 3, 64
TINY: dict[str, Any] = {
    **{"min_size": SIDE, "max_size": SIDE, "anchor_sizes": [[8], [16], [32], [64], [128]], "box_detections_per_img": 5},
    **{f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")},
}
"""Settings with which a detector takes little time."""


@dataclass
class Case:
    """A copy of the sound data, in which something is changed.

    Attributes:
        root: the folder.
        points: whether the annotations with keypoints are used.
        split: the one that is changed.
        random: makes what is left to chance.
        renamed: ids that were given to images and categories, and those that they had.
        pixels: names of the images that may have other pixels.
        control: whether the change is harmless.
    """

    root: Path
    points: bool
    split: str
    random: Random
    renamed: Renamed = SAME
    pixels: set[str] = field(default_factory=set)
    control: bool = False

    @property
    def dataset(self) -> str:
        """Name of ``--dataset``."""
        return "coco_kp" if self.points else "coco"

    @property
    def annotations(self) -> Path:
        """The annotation file that may be changed."""
        return annotation_file(self.root, self.split, self.dataset)

    @property
    def images(self) -> Path:
        """The folder of images that may be changed."""
        return self.root / f"{self.split}2017"

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.root / "results.json"


def expect_right(condition: object, what: str) -> None:
    """Stop the case, which is then noted as failed, unless the condition holds."""
    if not condition:
        raise RuntimeError(f"wrong: {what}")


class Row(NamedTuple):
    """What was read of an object, bit by bit."""

    category: Any
    area: float
    box: bytes
    mask: bytes
    points: bytes


class Sound:
    """The sound data, and what is read of it, made once in each process.

    Args:
        folder: where the data is written.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sound"
        make_shapes(self.root, train=TRAIN, val=VAL, size=SIDE)
        (self.root / "results.json").write_text(json.dumps(_results(self.content("val", points=True))))
        self._folder = folder
        self._read: dict[tuple[str, bool, bool], tuple[dict[str, list[Row]], dict[str, bytes]]] = {}

    def content(self, split: str, *, points: bool) -> dict[str, Any]:
        """Return the content of an annotation file."""
        path = annotation_file(self.root, split, "coco_kp" if points else "coco")
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def copy(self, folder: Path) -> Path:
        """Return a copy whose files are replaced, not changed."""
        return Path(shutil.copytree(self.root, folder / "data", copy_function=os.link))

    def read(self, split: str, *, points: bool, masks: bool) -> tuple[dict[str, list[Row]], dict[str, bytes]]:
        """Return the rows and the pixels of a split, by the names of the images."""
        key = (split, points, masks)
        if key not in self._read:
            data = CocoDataset(self.root, split, "coco_kp" if points else "coco", train=split == "train", masks=masks)
            self._read[key] = rows_of(data)
        return self._read[key]

    @cached_property
    def detector(self) -> Path:
        """The file of a tiny detector with masks."""
        path = self._folder / "detector.safetensors"
        classes = (BACKGROUND, *(each["name"] for each in self.content("val", points=False)["categories"]))
        net, spec = make_detector("maskrcnn_cpresnet50_fpn", weights_backbone=None, classes=classes, **TINY)
        nd.save(net.eval(), spec, path)
        return path


def rows_of(data: CocoDataset, renamed: Renamed = SAME) -> tuple[dict[str, list[Row]], dict[str, bytes]]:
    """Read all images of a data set; return rows and pixels by the names of the image files."""
    rows, pixels = {}, {}
    for index, number in enumerate(data.ids):
        image, target = data[index]
        name = Path(data.coco.imgs[number]["file_name"]).name
        pixels[name] = sha256(image.numpy().tobytes()).digest()
        categories = [data.labels.ids[label] for label in target["labels"].tolist()]
        rows[name] = [
            Row(
                renamed.categories.get(categories[i], categories[i]),
                float(target["area"][i]),
                target["boxes"][i].numpy().tobytes(),
                sha256(target["masks"][i].numpy().tobytes()).digest() if "masks" in target else b"",
                target["keypoints"][i].numpy().tobytes() if "keypoints" in target else b"",
            )
            for i in range(len(categories))
        ]
        finite = all(value.double().isfinite().all() for value in target.values() if isinstance(value, Tensor))
        expect_right(finite, f"{name}: {target}")
    return rows, pixels


def _results(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return results that are near the truth, with masks of both kinds, and keypoints."""
    random, found = Random(0), []
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        found.append(
            {
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "score": round(random.random(), 2),
                "bbox": [x + random.uniform(-2, 2), y, width, height],
                "segmentation": copy.deepcopy(each["segmentation"]),
                "keypoints": [*each["keypoints"]],
            }
        )
    return found


def untouched(sound: dict[str, Any], content: Any, case: Case) -> dict[str, list[int]]:
    """Return which objects are as they were: the positions, in the sound content, of each image file's, in their order.

    Images that are not as they were have no entry.
    """
    parts = {part: content.get(part) if isinstance(content, dict) else None for part in sound}
    lists = {
        part: [each for each in found if isinstance(each, dict)]
        for part, found in parts.items()
        if isinstance(found, list)
    }
    images = {
        image["id"]: Path(image["file_name"]).name
        for image in sound["images"]
        if sum(_same(image, each, case.renamed) for each in lists.get("images", ())) == 1
    }
    categories = {
        category["id"]
        for category in sound["categories"]
        if any(case.control or _same(category, each, case.renamed) for each in lists.get("categories", ()))
    }
    found: dict[str, list[int]] = defaultdict(list, {name: [] for name in images.values()})
    for each in lists.get("annotations", ()):
        for position, annotation in enumerate(sound["annotations"]):
            fits = annotation["image_id"] in images and annotation["category_id"] in categories
            if fits and _same(annotation, each, case.renamed, optional=case.control):
                found[images[annotation["image_id"]]].append(position)
    return dict(found)


def _same(sound: dict[str, Any], found: dict[str, Any], renamed: Renamed, *, optional: bool = False) -> bool:
    """Tell whether a record has what the sound one has, but for other ids, and perhaps without fields."""
    for name, value in sound.items():
        other = found.get(name, value if optional else None)
        if name == "image_id" or (name == "id" and "file_name" in sound):
            other = _renamed(renamed.images, other)
        elif name == "category_id" or (name == "id" and "supercategory" in sound):
            other = _renamed(renamed.categories, other)
        elif name == "id" and renamed.images:
            continue
        if type(other) is not type(value) or other != value:
            return False
    return True


def _renamed(ids: dict[Any, Any], value: Any) -> Any:
    return ids.get(value, value) if isinstance(value, (int, str)) else value
