"""The annotated objects of an image file, as drawings and results refer to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from norton_det.data.coco.checks import check_annotations, raise_errors
from norton_det.data.coco.checks.annotations import reading_checks
from norton_det.data.coco.checks.results import FIELD
from norton_det.data.coco.dataset import read_coco
from norton_det.data.coco.labels import class_names
from norton_det.data.coco.pixels import annotated_size
from norton_det.errors import DataError
from norton_det.image_files import Size


class Truth:
    """The images and objects of a COCO annotation file, by the names of the image files.

    Args:
        path: the annotation file.

    Attributes:
        names: names of the classes by category id.
        names_of_labels: names of the classes by the labels of :meth:`objects`.

    Raises:
        DataError: the file is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._coco = path, read_coco(path)
        self._checked: set[tuple[str, ...]] = set()
        self.names = class_names(self._coco.cats.values())
        # Texts are no labels: the ids are all numbers, or all texts.
        self._label_of = {i: i if isinstance(i, int) else number for number, i in enumerate(self.names, start=1)}
        self.names_of_labels = {self._label_of[i]: name for i, name in self.names.items()}
        self._ids: dict[str, list[Any]] = {}
        for number, image in self._coco.imgs.items():
            self._ids.setdefault(Path(str(image["file_name"])).name, []).append(number)

    def ids_of(self, files: Sequence[str]) -> list[Any] | None:
        """Return the ids of image files; None unless the annotations have all of them.

        Raises:
            DataError: the annotations have several images of the name of a file.
        """
        return [self._id_of(file) for file in files] if all(file in self._ids for file in files) else None

    def _id_of(self, file: str) -> Any:
        ids = self._ids[file]
        if len(ids) > 1:
            images = ", ".join(f"{self._coco.imgs[number]['file_name']} (id {number})" for number in ids)
            raise DataError(f"{self.path}: has {len(ids)} images named {file}: {images}; expected one")
        return ids[0]

    def objects(self, file: str, kinds: Sequence[str] = ("bbox",), size: Size | None = None) -> dict[str, Any]:
        """Return the objects in an image file, as :mod:`norton_det.visualization` draws them, without crowds.

        The labels are category ids; where these are texts, numbers in their order.

        Args:
            file: the name of the file.
            kinds: what is returned of the objects, in COCO's words: "bbox", "segm", "keypoints".
            size: width and height of the image; None: not compared with the annotations.

        Raises:
            DataError: the annotations do not have the file, have several images of its name or another size, or have
                errors for which objects cannot be read.
        """
        if file not in self._ids:
            raise DataError(f"{self.path}: has no image {file}; expected the annotations of the images")
        self._check(tuple(kinds))
        number = self._id_of(file)
        width, height = annotated_size(self._coco.imgs[number])
        if size is not None and size != (width, height):
            raise DataError(
                f"{self.path}: image {file} is annotated as {width} x {height}; it is {size[0]} x {size[1]}"
            )
        annotations = self._coco.imgToAnns[number]
        rows = [row for row in annotations if row["category_id"] in self.names and not row.get("iscrowd")]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._label_of[row["category_id"]] for row in rows]
        found: dict[str, Any] = {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}
        if "segm" in kinds and all(row.get("segmentation") for row in rows):
            found["masks"] = [torch.from_numpy(self._coco.annToMask(row)).bool() for row in rows]
        points = [row.get("keypoints") or () for row in rows] if "keypoints" in kinds else []
        if points and len(set(map(len, points))) == 1:
            found["keypoints"] = torch.tensor(points, dtype=torch.float64).reshape(len(points), -1, 3)
        return found

    def _check(self, kinds: tuple[str, ...]) -> None:
        """Refuse annotations of which these kinds cannot be read."""
        if kinds not in self._checked:
            unread = ["file_name", "area", *(name for kind, name in FIELD.items() if kind not in kinds)]
            only = reading_checks(unread)
            raise_errors(check_annotations(self._coco.dataset, only=only, unread=unread), self.path)
            self._checked.add(kinds)
