"""Checks of the masks and keypoints of COCO annotations."""

from collections import Counter
from collections.abc import Iterator

from norton_det.data.coco.checks.content import Annotations, Entry, describe_field, each_annotation
from norton_det.data.coco.checks.fields import are_sigmas, is_text, keypoints_fault, mask_fault
from norton_det.data.coco.checks.findings import ERROR, NOTE, WARNING, Check
from norton_det.data.coco.sides import partners
from norton_det.errors import shown

MASK, POINTS, SIGMAS = "segmentation", "keypoints", "keypoint_sigmas"


def _without_mask(data: Annotations, a: Entry) -> str | None:
    return describe_field(a, "segmentation") if data.masks and not a.get("segmentation") else None


def _broken_mask(data: Annotations, a: Entry) -> str | None:
    mask, image = a.get("segmentation"), data.image_of.get(a["image_id"])
    return mask_fault(mask, image["height"], image["width"]) if mask and image else None


def _wrong_keypoints(data: Annotations, a: Entry) -> str | None:
    count = data.keypoints_of.get(a["category_id"])
    return None if count is None else keypoints_fault(a.get("keypoints"), count)


def _visibilities(data: Annotations, a: Entry) -> list[float]:
    """Return the visibility of each keypoint; an empty list if the object has no valid keypoints."""
    valid = a["category_id"] in data.keypoints_of and not _wrong_keypoints(data, a)
    return a["keypoints"][2::3] if valid else []


def _unknown_visibility(data: Annotations, a: Entry) -> str | None:
    wrong = [v for v in _visibilities(data, a) if v not in (0, 1, 2)]
    return f"visibility {shown(wrong[0])}" if wrong else None


def _wrong_num_keypoints(data: Annotations, a: Entry) -> str | None:
    visibilities = _visibilities(data, a)
    visible = sum(v > 0 for v in visibilities)
    if not visibilities or a.get("num_keypoints") == visible:
        return None
    return f"{describe_field(a, 'num_keypoints')}, {visible} are visible"


def _all_invisible(data: Annotations, a: Entry) -> str | None:
    visibilities = _visibilities(data, a)
    return None if not visibilities or any(v > 0 for v in visibilities) else f"none of {len(visibilities)}"


def _different_keypoints(data: Annotations) -> Iterator[str]:
    if len(set(data.keypoints_of.values())) > 1:
        yield ", ".join(f"category {number} has {count}" for number, count in data.keypoints_of.items())


def _no_names(data: Annotations) -> Iterator[str]:
    if data.keypoints and not data.keypoints_of:
        yield "no category has keypoints"


def _wrong_names(data: Annotations) -> Iterator[str]:
    for category in data.categories:
        names = category.get("keypoints") or []
        texts = isinstance(names, list) and all(map(is_text, names))
        if not texts or len(set(names)) < len(names):
            yield f"category {category['id']}: {describe_field(category, 'keypoints')}"


def _wrong_sigmas(data: Annotations) -> Iterator[str]:
    for number, count in data.keypoints_of.items():
        category = data.category_of[number]
        if SIGMAS in category and not are_sigmas(category[SIGMAS], count):
            yield f"category {number}: {describe_field(category, SIGMAS)}; expected {count} numbers above 0"


def _different_names(data: Annotations) -> Iterator[str]:
    first, *others = [(n, data.category_of[n]["keypoints"]) for n in data.keypoints_of] or [(None, None)]
    for number, names in others:
        if names != first[1] and len(names) == len(first[1]):
            yield f"category {number}: {names}, category {first[0]}: {first[1]}"


def _without_keypoints(data: Annotations) -> Iterator[str]:
    counts = Counter(a["category_id"] for a in data.annotations if a["category_id"] in data.category_of)
    for number, count in counts.items():
        if data.keypoints_of and number not in data.keypoints_of:
            yield f"category {number}: {count} objects"


def _one_sided(data: Annotations) -> Iterator[str]:
    for number in data.keypoints_of:
        names = [name for name in data.category_of[number]["keypoints"] if isinstance(name, str)]
        yield from (f"category {number}: {name}" for name, other in partners(names).items() if other is None)


CHECKS: tuple[Check[Annotations], ...] = (
    Check("objects without mask", ERROR, each_annotation(_without_mask), "a mask detector needs all masks", MASK),
    Check("broken masks", ERROR, each_annotation(_broken_mask), "pycocotools hangs, or decodes other masks", MASK),
    Check("wrong keypoint names", ERROR, _wrong_names, "expected a list of distinct names, or none", POINTS),
    Check("no keypoint names", ERROR, _no_names, "a keypoint detector needs their names in one", POINTS),
    Check(
        "categories of different keypoints", ERROR, _different_keypoints, "a detector has one number of them", POINTS
    ),
    Check(
        "categories of different keypoint names", WARNING, _different_names, "those of the first one are used", POINTS
    ),
    Check("categories without keypoints", WARNING, _without_keypoints, "their objects have boxes alone", POINTS),
    Check("keypoints without partner", WARNING, _one_sided, "a flip needs --keypoint-pairs, or do not flip", POINTS),
    Check("wrong keypoint sigmas", ERROR, _wrong_sigmas, "a tolerance for each keypoint", POINTS),
    Check("wrong keypoints", ERROR, each_annotation(_wrong_keypoints), "expected those of the category", POINTS),
    Check("unknown visibilities", ERROR, each_annotation(_unknown_visibility), "expected 0, 1 or 2 (visible)", POINTS),
    Check("wrong num_keypoints", WARNING, each_annotation(_wrong_num_keypoints), "other programs use it", POINTS),
    Check("no visible keypoints", NOTE, each_annotation(_all_invisible), "ignored in the evaluation of keypoints"),
)
"""Checks of masks and keypoints, in the order of the findings."""
READING = (
    "objects without mask",
    "broken masks",
    "no keypoint names",
    "wrong keypoint names",
    "categories of different keypoints",
    "wrong keypoints",
)
"""Names of the checks without which masks and keypoints cannot be read."""
