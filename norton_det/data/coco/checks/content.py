"""The content of a COCO annotation file, as checks look at it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from norton_det.data.coco.checks.fields import is_id
from norton_det.errors import DataError

Entry = dict[str, Any]
_PARTS = {"images": "image", "annotations": "annotation", "categories": "category"}


class Annotations:
    """The content of an annotation file: the entries that are whole; what the others lack is in ``incomplete``.

    Args:
        content: with ``images``, ``annotations`` and ``categories``.
        num_classes: outputs of the detector that will be trained, background included; None: not known.
        masks: each object needs a mask.

    Raises:
        DataError: the content is not that of COCO annotations at all.
    """

    def __init__(self, content: Mapping[str, Any], num_classes: int | None = None, masks: bool = False) -> None:
        if missing := [part for part in _PARTS if not isinstance(content.get(part), list)]:
            raise DataError(f"lacks {', '.join(missing)}; expected COCO annotations")
        self.num_classes, self.masks = num_classes, masks
        self.incomplete: list[str] = []
        image = {"id": is_id, "file_name": _is_text, "width": _is_size, "height": _is_size}
        self.images = self._whole(content, "images", image)
        self.categories = self._whole(content, "categories", {"id": is_id})
        self.annotations = self._whole(content, "annotations", dict.fromkeys(("id", "image_id", "category_id"), is_id))
        self.image_of = {image["id"]: image for image in self.images}
        self.category_of = {category["id"]: category for category in self.categories}
        self.keypoints_of = {
            number: len(category["keypoints"])
            for number, category in self.category_of.items()
            if isinstance(category.get("keypoints"), list)
        }
        """Number of keypoints of the categories that have any."""

    def _whole(self, content: Mapping[str, Any], part: str, fields: Mapping[str, Callable[[Any], bool]]) -> list[Entry]:
        whole = []
        for position, entry in enumerate(content[part]):
            name = f"{_PARTS[part]} at position {position}"
            if not isinstance(entry, dict):
                self.incomplete.append(f"{name} is a {type(entry).__name__}")
            elif wrong := [field for field, fits in fields.items() if not fits(entry.get(field))]:
                self.incomplete.append(f"{name}: {shown(entry, wrong[0])}")
            else:
                whole.append(entry)
        return whole


def each_annotation(fault: Callable[[Annotations, Entry], str | None]) -> Callable[[Annotations], Iterator[str]]:
    """Make the search of a check from a function that says what is wrong with one annotation, or None."""

    def find(data: Annotations) -> Iterator[str]:
        for annotation in data.annotations:
            if case := fault(data, annotation):
                yield f"annotation {annotation['id']}: {case}"

    return find


def shown(entry: Entry, field: str) -> str:
    """Return what an entry has in a field, in words."""
    return f"{field} is {entry[field]!r}" if field in entry else f"no {field}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
