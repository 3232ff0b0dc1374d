"""The content of a COCO annotation file, prepared for the checks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from norton_det.data.coco.checks.fields import is_id, is_number, is_size, is_text
from norton_det.data.coco.labels import BACKGROUND, category_name
from norton_det.errors import DataError, shown

_MAX_PATH = 4096  # letters; no system opens more
Entry = dict[str, Any]
_PARTS = {"images": "image", "annotations": "annotation", "categories": "category"}


class Annotations:
    """The complete entries of an annotation file, with descriptions of the others in ``incomplete``.

    Args:
        content: the content, with ``images``, ``annotations`` and ``categories``.
        num_classes: number of outputs of the detector that will be trained, with the background; None: unknown.
        masks: each object must have a mask.
        keypoints: a category must have keypoints.

    Raises:
        DataError: one of the three lists is missing.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        num_classes: int | None = None,
        masks: bool = False,
        keypoints: bool = False,
    ) -> None:
        if missing := [part for part in _PARTS if not isinstance(content.get(part), list)]:
            raise DataError(f"lacks {', '.join(missing)}; expected COCO annotations")
        self.num_classes, self.masks, self.keypoints = num_classes, masks, keypoints
        self.incomplete: list[str] = []
        image = {"id": is_id, "file_name": _is_name, "width": is_size, "height": is_size}
        ids = dict.fromkeys(("id", "image_id", "category_id"), is_id)
        self.images = self._complete(content, "images", image)
        self.categories = self._complete(content, "categories", {"id": is_id, "name": _is_class})
        self.annotations = self._complete(content, "annotations", ids)
        self.image_of = {image["id"]: image for image in self.images}
        self.category_of = {category["id"]: category for category in self.categories}
        self.classes = {number for number, entry in self.category_of.items() if category_name(entry) != BACKGROUND}
        self.keypoints_of = {
            number: len(category["keypoints"])
            for number, category in self.category_of.items()
            if isinstance(category.get("keypoints"), list) and category["keypoints"]
        }
        """Number of keypoints of each category that has any."""

    def _complete(
        self, content: Mapping[str, Any], part: str, fields: Mapping[str, Callable[[Any], bool]]
    ) -> list[Entry]:
        complete = []
        for position, entry in enumerate(content[part]):
            name = f"{_PARTS[part]} at position {position}"
            if not isinstance(entry, dict):
                self.incomplete.append(f"{name} is a {type(entry).__name__}")
            elif wrong := [field for field, fits in fields.items() if not fits(entry.get(field))]:
                self.incomplete.append(f"{name}: {describe_field(entry, wrong[0])}")
            else:
                complete.append(entry)
        return complete


def each_annotation(fault: Callable[[Annotations, Entry], str | None]) -> Callable[[Annotations], Iterator[str]]:
    """Return the ``find`` of a check, given a function that describes the error of one annotation or returns None."""

    def find(data: Annotations) -> Iterator[str]:
        for annotation in data.annotations:
            if case := fault(data, annotation):
                yield f"annotation {annotation['id']}: {case}"

    return find


def describe_field(entry: Entry, field: str) -> str:
    """Return a description of the value of a field ("width is 0", "no width")."""
    return f"{field} is {shown(entry[field])}" if field in entry else f"no {field}"


def _is_name(value: object) -> bool:
    return is_text(value) and 0 < len(str(value)) <= _MAX_PATH


def _is_class(value: object) -> bool:
    return value is None or is_number(value) or is_text(value)
