"""Class labels of detectors: their correspondence with the category ids of a data set; and the names of keypoints."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.errors import DataError, shown
from norton_det.models import ARCHITECTURES
from norton_det.spec import UNUSED, Spec

logger = logging.getLogger(__name__)

Category = Mapping[str, Any]
"""An entry of ``categories`` in COCO annotations."""
BACKGROUND = "__background__"
"""Name of label 0."""
_KEYPOINTS = 17  # of a detector whose spec does not say it, as in torchvision


@dataclass(frozen=True)
class Labels:
    """The correspondence of a detector's labels with the category ids of a data set.

    Attributes:
        classes: names of the detector's classes by label, as in :class:`~norton_det.spec.Spec`.
        ids: category ids by label. Labels of classes that the data set does not have are missing.
        keypoints: names of the keypoints in order.

    Example:
        >>> from norton_det.data.coco.labels import Labels
        >>> labels = Labels.new([{"id": 44, "name": "bottle"}, {"id": 7, "name": "train"}])
        >>> labels.classes, labels.ids
        (('__background__', 'train', 'bottle'), {1: 7, 2: 44})
        >>> labels.of([{"category_id": 44}, {"category_id": 7}])
        tensor([2, 1])
    """

    classes: tuple[str, ...]
    ids: Mapping[int, Any]
    keypoints: tuple[str, ...] = ()

    @classmethod
    def new(cls, categories: Iterable[Category]) -> "Labels":
        """Return the labels of a new detector: 1 to N in the order of the category ids."""
        categories = list(categories)
        names = class_names(categories)
        keypoints = tuple(keypoint_names(categories))
        return cls((BACKGROUND, *names.values()), dict(enumerate(names, start=1)), keypoints)

    @classmethod
    def match(cls, spec: Spec, categories: Iterable[Category], *, detector: str | Path, data: str | Path) -> "Labels":
        """Match a detector with a data set by the names of the classes. The data set may have fewer classes.

        Labels of a detector that does not name its classes are taken for category ids, and a line is logged.

        Args:
            spec: spec of the detector.
            categories: the categories of the data set.
            detector: name of the detector in messages: its file.
            data: name of the data set in messages: its annotation file.

        Raises:
            DataError: the data set has classes or keypoints that the detector does not have. The message lists them.

        Example:
            >>> from norton_det import Spec
            >>> from norton_det.data.coco.labels import Labels
            >>> spec = Spec("fasterrcnn_cpresnet50_fpn", 3, classes=("__background__", "cat", "dog"))
            >>> Labels.match(spec, [{"id": 18, "name": "dog"}], detector="d.safetensors", data="val.json").ids
            {2: 18}
            >>> Labels.match(spec, [{"id": 18, "name": "Dog"}], detector="d.safetensors", data="val.json")
            Traceback (most recent call last):
            norton_det.errors.DataError: val.json: has classes that d.safetensors lacks: 'Dog' (id 18; similar: 'dog')
        """
        categories = list(categories)
        names = class_names(categories)
        keypoints = _match_keypoints(spec, tuple(keypoint_names(categories)), detector, data)
        if not spec.classes:
            return cls(_classes_by_id(spec, names, detector, data), {number: number for number in names}, keypoints)
        label_of = {name: label for label, name in enumerate(spec.classes) if label and name != UNUSED}
        if missing := [_described(number, name, label_of) for number, name in names.items() if name not in label_of]:
            raise DataError(f"{data}: has classes that {detector} lacks: {', '.join(missing)}")
        return cls(spec.classes, {label_of[name]: number for number, name in names.items()}, keypoints)

    def are_those_of(self, spec: Spec) -> bool:
        """Tell whether these labels, of a data set, have the classes and keypoints of a detector: all, and no others.

        A detector that does not name its classes has them if its labels end with the largest category id.

        Example:
            >>> from norton_det import Spec
            >>> from norton_det.data.coco.labels import Labels
            >>> labels = Labels.new([{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}])
            >>> named = Spec("fasterrcnn_cpresnet50_fpn", 3, classes=("__background__", "dog", "cat"))
            >>> labels.are_those_of(named), labels.are_those_of(Spec("fasterrcnn_cpresnet50_fpn", 6))
            (True, True)
        """
        if spec.classes:
            same = set(self.classes[1:]) == {*spec.classes[1:]} - {UNUSED}
        else:
            ids = [number for number in self.ids.values() if isinstance(number, int)]
            same = len(ids) == len(self.ids) and min(ids) > 0 and max(ids) == spec.num_classes - 1
        if "keypoints" not in ARCHITECTURES[spec.arch].task.kinds or not self.keypoints:
            return same
        count = spec.options.get("num_keypoints", _KEYPOINTS)
        return same and (self.keypoints == spec.keypoints if spec.keypoints else len(self.keypoints) == count)

    def of(self, annotations: Iterable[Mapping[str, Any]]) -> Tensor:
        """Return the labels of annotations, int64 of shape (N,); 0 where the data set does not have the category."""
        label_of = {number: label for label, number in self.ids.items()}
        labels = [label_of.get(annotation["category_id"], 0) for annotation in annotations]
        return torch.tensor(labels, dtype=torch.int64)

    def select(self, prediction: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the part of a prediction (tensors of length N, with ``labels``) whose classes the data set has."""
        known = torch.tensor([label in self.ids for label in prediction["labels"].tolist()], dtype=torch.bool)
        return prediction if known.all() else {name: value[known] for name, value in prediction.items()}


def class_categories(content: Mapping[str, Any]) -> list[Category]:
    """Return the categories of an annotation file that are classes.

    Roboflow writes the group of all classes as a category as well: no object has it, and it is the supercategory of all
    others. It is left out, and a line is logged.

    Example:
        >>> from norton_det.data.coco.labels import class_categories
        >>> group, cell = {"id": 0, "name": "cells"}, {"id": 1, "name": "RBC", "supercategory": "cells"}
        >>> class_categories({"categories": [group, cell], "annotations": [{"id": 1, "image_id": 1, "category_id": 1}]})
        [{'id': 1, 'name': 'RBC', 'supercategory': 'cells'}]
    """
    categories: list[Category] = list(content["categories"])
    used = {annotation["category_id"] for annotation in content["annotations"]}
    for group in categories:
        others = [category for category in categories if category is not group]
        above = group.get("supercategory") in (None, "", "none")
        within = all(category.get("supercategory") == category_name(group) for category in others)
        if others and above and within and group["id"] not in used:
            text = "category %r (id %s) is the group of all others and has no objects: it is no class"
            logger.info(text, category_name(group), group["id"])
            return others
    return categories


def class_names(categories: Iterable[Category]) -> dict[Any, str]:
    """Return the distinct names of categories by id, in the order of the ids.

    A category without a name has its id as name; where several have one name, the id is added. The background
    (``__background__``, which some programs write as the first category) is no class and is left out.

    Example:
        >>> from norton_det.data.coco.labels import class_names
        >>> class_names([{"id": 3, "name": "cell"}, {"id": 1, "name": "cell"}, {"id": 2}])
        {1: 'cell (id 1)', 2: '2', 3: 'cell (id 3)'}

    Raises:
        DataError: the names are not distinct even so.
    """
    names = {category["id"]: category_name(category) for category in categories}
    names = {number: name for number, name in names.items() if name != BACKGROUND}
    counts = Counter([*names.values(), UNUSED])
    ids = sorted(names, key=lambda number: (type(number).__name__, number))  # integers, then strings
    distinct = {n: names[n] if counts[names[n]] == 1 else f"{names[n]} (id {n})" for n in ids}
    if len(set(distinct.values())) < len(distinct):
        raise DataError(f"categories {shown(distinct)}: expected distinct names")
    return distinct


def category_name(category: Category) -> str:
    """Return the name of a category; its id if it has no name, or null.

    Example:
        >>> from norton_det.data.coco.labels import category_name
        >>> category_name({"id": 3, "name": "cell"}), category_name({"id": 3, "name": None})
        ('cell', '3')
    """
    name = category.get("name")
    return str(category["id"] if name is None else name)


def keypoint_names(categories: Iterable[Category]) -> list[str]:
    """Return the names of the keypoints, those of the first category that has any; an empty list if none has.

    Example:
        >>> from norton_det.data.coco.labels import keypoint_names
        >>> keypoint_names([{"id": 1}, {"id": 2, "keypoints": ["head", "tail"]}])
        ['head', 'tail']
    """
    lists = (category.get("keypoints") for category in categories)
    return next((names for names in lists if names and isinstance(names, list)), [])


def _described(number: Any, name: str, label_of: Mapping[str, int]) -> str:
    """Return a class that a detector lacks, with the class that its name resembles."""
    plain = {" ".join(known.casefold().split()): known for known in label_of}
    similar = get_close_matches(" ".join(name.casefold().split()), plain, n=1, cutoff=0.8)
    return f"{shown(name)} (id {number}" + (f"; similar: {shown(plain[similar[0]])})" if similar else ")")


def _classes_by_id(spec: Spec, names: Mapping[Any, str], detector: str | Path, data: str | Path) -> tuple[str, ...]:
    """Return the names of a detector's labels, which are category ids."""
    labels = range(1, spec.num_classes)
    if outside := [f"{shown(name)} (id {number})" for number, name in names.items() if number not in labels]:
        raise DataError(
            f"{data}: has classes that {detector} lacks: {', '.join(outside)}; "
            f"it does not name its classes, and its labels are the ids 1 to {spec.num_classes - 1}"
        )
    logger.warning("%s: does not name its classes; its labels are taken for the category ids of %s", detector, data)
    return (BACKGROUND, *(names.get(label, UNUSED) for label in labels))


def _match_keypoints(spec: Spec, names: tuple[str, ...], detector: str | Path, data: str | Path) -> tuple[str, ...]:
    """Return the names of a detector's keypoints; those of the data set if the detector does not name them."""
    if "keypoints" not in ARCHITECTURES[spec.arch].task.kinds:
        return ()
    count = spec.options.get("num_keypoints", _KEYPOINTS)
    if names and (names != spec.keypoints if spec.keypoints else len(names) != count):
        expected = ", ".join(spec.keypoints) or count
        raise DataError(f"{data}: has the keypoints {', '.join(names)}; {detector} has {expected}")
    return spec.keypoints or names
