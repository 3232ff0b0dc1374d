"""Checks of COCO annotations that need no images."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from norton_det.data.coco.checks import objects
from norton_det.data.coco.checks.content import Annotations, Entry, describe_field, each_annotation
from norton_det.data.coco.checks.fields import are_coordinates, is_area, outside
from norton_det.data.coco.checks.findings import ERROR, NOTE, WARNING, Check, Finding, run_checks
from norton_det.data.coco.image_paths import leaves_folder
from norton_det.data.coco.labels import BACKGROUND, category_name

_LOWER = {ERROR: WARNING, WARNING: NOTE, NOTE: NOTE}


def check_annotations(
    content: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    masks: bool = False,
    keypoints: bool = False,
    only: Collection[str] | None = None,
    unread: Collection[str] = (),
) -> list[Finding]:
    """Check COCO annotations. No file is read.

    Args:
        content: the content of the JSON file (``dataset`` of a ``pycocotools.coco.COCO``).
        num_classes: number of outputs of the detector that will be trained, with the background; None: unknown.
        masks: each object must have a mask.
        keypoints: a category must have keypoints.
        only: names of the checks to run; None: all.
        unread: fields that are not read, of "area", "segmentation" and "keypoints". Their errors are warnings, and
            their warnings are notes.

    Returns:
        The findings, errors first.

    Raises:
        DataError: the content lacks ``images``, ``annotations`` or ``categories``.

    Example:
        >>> from norton_det.data.coco.checks.annotations import check_annotations
        >>> image = {"id": 1, "file_name": "1.png", "width": 8, "height": 6}
        >>> box = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 0, 3], "area": 0}
        >>> content = {"images": [image], "annotations": [box], "categories": [{"id": 2}]}
        >>> for finding in check_annotations(content):
        ...     print(finding.severity, finding)
        warning boxes without area: annotation 1: bbox [1, 1, 0, 3]; left out in training
    """
    checks = [check for check in CHECKS if only is None or check.name in only]
    checks = [replace(c, severity=_LOWER[c.severity]) if c.field in unread else c for c in checks]
    return run_checks(checks, Annotations(content, num_classes, masks, keypoints))


def _empty(data: Annotations) -> Iterator[str]:
    return (f"no {kind}" for kind in ("images", "annotations", "categories") if not getattr(data, kind))


def _duplicate(kind: str) -> Callable[[Annotations], Iterator[str]]:
    def find(data: Annotations) -> Iterator[str]:
        counts = Counter(entry["id"] for entry in getattr(data, kind))
        return (f"id {value} comes {count} times" for value, count in counts.items() if count > 1)

    return find


def _paths(data: Annotations) -> Iterator[str]:
    for image in data.images:
        if leaves_folder(image["file_name"]):
            yield f"image {image['id']}: {describe_field(image, 'file_name')}"


def _without_annotations(data: Annotations) -> Iterator[str]:
    used = {a["image_id"] for a in data.annotations}
    return (image["file_name"] for image in data.images if image["id"] not in used)


def _too_many_categories(data: Annotations) -> Iterator[str]:
    count, limit = len(data.classes), data.num_classes
    if limit is not None and count >= limit:
        yield f"{count} categories; expected at most {limit - 1}, as num_classes is {limit}"


def _category_zero(data: Annotations) -> Iterator[str]:
    if 0 in data.classes:
        yield f"category {category_name(data.category_of[0])}"


def _same_names(data: Annotations) -> Iterator[str]:
    ids = defaultdict(list)
    for number, category in data.category_of.items():
        ids[category_name(category)].append(number)
    return (f"{name!r} of ids {', '.join(map(str, same))}" for name, same in ids.items() if len(same) > 1)


def _id_zero(data: Annotations, a: Entry) -> str | None:
    return f"image_id {a['image_id']}" if a["id"] == 0 else None


def _without_image(data: Annotations, a: Entry) -> str | None:
    return None if a["image_id"] in data.image_of else f"image_id {a['image_id']!r}"


def _unknown_category(data: Annotations, a: Entry) -> str | None:
    return None if a["category_id"] in data.category_of else f"category_id {a['category_id']!r}"


def _of_background(data: Annotations, a: Entry) -> str | None:
    number = a["category_id"]
    return f"category_id {number!r}" if number in data.category_of and number not in data.classes else None


def _wrong_area(data: Annotations, a: Entry) -> str | None:
    return None if is_area(a.get("area")) else describe_field(a, "area")


def _wrong_iscrowd(data: Annotations, a: Entry) -> str | None:
    return None if a.get("iscrowd", 0) in (0, 1) else describe_field(a, "iscrowd")


def _kinds_of_ids(part: str) -> Callable[[Annotations], Iterator[str]]:
    def find(data: Annotations) -> Iterator[str]:
        ids = [entry["id"] for entry in getattr(data, part)]
        texts = [number for number in ids if isinstance(number, str)]
        if 0 < len(texts) < len(ids):
            number = next(number for number in ids if not isinstance(number, str))
            yield f"{number!r} and {texts[0]!r}"

    return find


def _malformed_box(data: Annotations, a: Entry) -> str | None:
    return None if are_coordinates(a.get("bbox"), 4) else describe_field(a, "bbox")


def _negative_box(data: Annotations, a: Entry) -> str | None:
    return f"bbox {a['bbox']}" if are_coordinates(a.get("bbox"), 4) and min(a["bbox"][2:]) < 0 else None


def _box_without_area(data: Annotations, a: Entry) -> str | None:
    return f"bbox {a['bbox']}" if are_coordinates(a.get("bbox"), 4) and min(a["bbox"][2:]) == 0 else None


def _box_outside(data: Annotations, a: Entry) -> str | None:
    image = data.image_of.get(a["image_id"])
    if image is None or not are_coordinates(a.get("bbox"), 4) or not outside(a["bbox"], image):
        return None
    return f"bbox {a['bbox']}, image {image['width']} x {image['height']}"


def _boxes_as_corners(data: Annotations) -> Iterator[str]:
    pairs = [
        (a["bbox"], data.image_of.get(a["image_id"])) for a in data.annotations if are_coordinates(a.get("bbox"), 4)
    ]
    boxes = [(box, image) for box, image in pairs if image is not None]
    leaving = sum(outside(box, image) for box, image in boxes)
    if leaving > len(boxes) / 2 and all(
        x1 <= x2 and y1 <= y2 and not outside((x1, y1, x2 - x1, y2 - y1), image) for (x1, y1, x2, y2), image in boxes
    ):
        yield f"{leaving} of {len(boxes)} boxes exceed their image; as x1, y1, x2, y2 none would"


CHECKS: tuple[Check[Annotations], ...] = (
    Check("empty lists", ERROR, _empty, "training and evaluation need images, annotations and categories"),
    Check(
        "incomplete entries",
        ERROR,
        lambda data: data.incomplete,
        "expected ids, names without control characters, sizes above 0",
    ),
    Check("duplicate image ids", ERROR, _duplicate("images"), "their annotations are mixed"),
    Check("image ids of different kinds", ERROR, _kinds_of_ids("images"), "expected all numbers, or all strings"),
    Check(
        "category ids of different kinds", ERROR, _kinds_of_ids("categories"), "expected all numbers, or all strings"
    ),
    Check("duplicate category ids", ERROR, _duplicate("categories"), "the last one hides the others"),
    Check("duplicate annotation ids", WARNING, _duplicate("annotations"), "other programs use the last one for all"),
    Check("annotation id 0", NOTE, each_annotation(_id_zero), "pycocotools takes it for unmatched; corrected here"),
    Check("annotations without image", ERROR, each_annotation(_without_image), "expected the id of an image"),
    Check("unknown categories", ERROR, each_annotation(_unknown_category), "expected the id of a category"),
    Check("objects of the background", ERROR, each_annotation(_of_background), f"{BACKGROUND} is no class"),
    Check("too many categories", ERROR, _too_many_categories, "the detector has no label for each"),
    Check("category id 0", NOTE, _category_zero, "other programs take it for the background; labels begin with 1 here"),
    Check("categories of one name", WARNING, _same_names, "they are told apart by their ids"),
    Check("malformed boxes", ERROR, each_annotation(_malformed_box), "expected four finite numbers of at most 1e6"),
    Check("negative boxes", ERROR, each_annotation(_negative_box), "expected x, y, width, height"),
    Check("boxes as corners", ERROR, _boxes_as_corners, "expected x, y, width, height"),
    Check("boxes without area", WARNING, each_annotation(_box_without_area), "left out in training"),
    Check("boxes outside the image", WARNING, each_annotation(_box_outside), "clipped, or left out in training"),
    Check("wrong areas", ERROR, each_annotation(_wrong_area), "expected square pixels, for APs, APm and APl", "area"),
    Check("wrong iscrowd", ERROR, each_annotation(_wrong_iscrowd), "expected 0 or 1"),
    *objects.CHECKS,
    Check("paths that leave the folder", ERROR, _paths, "expected a file in the folder of images", "file_name"),
    Check("images without annotations", NOTE, _without_annotations, "left out in training"),
)
"""All checks of annotations, in the order of the findings."""
INDEXING = ("incomplete entries", "image ids of different kinds", "category ids of different kinds")
"""Names of the checks without which no annotations can be indexed."""
_READING = (
    *INDEXING,
    "paths that leave the folder",
    "unknown categories",
    "objects of the background",
    "malformed boxes",
    "wrong iscrowd",
    *objects.READING,
)


def reading_checks(unread: Collection[str]) -> list[str]:
    """Return the names of the checks without which no item can be read, but for those of fields that are not read."""
    return [check.name for check in CHECKS if check.name in _READING and check.field not in unread]
