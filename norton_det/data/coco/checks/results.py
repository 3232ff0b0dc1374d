"""Checks of results in COCO's format against the annotations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from norton_det.data.coco.checks.content import Annotations
from norton_det.data.coco.checks.fields import (
    box_fault,
    is_id,
    is_number,
    keypoints_fault,
    mask_fault,
    outside,
)
from norton_det.data.coco.checks.findings import ERROR, WARNING, Check, Finding, run_checks
from norton_det.errors import shown

FIELD = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""Kinds of results, and the field of each kind."""
Row = dict[str, Any]


class Results:
    """Results and their annotations.

    Args:
        data: the annotations.
        results: the results.
        kinds: the kinds of results that are checked; None: all kinds that are present.
    """

    def __init__(self, data: Annotations, results: Sequence[Any], kinds: Sequence[str] | None = None) -> None:
        self.data, self.all = data, results
        self.required = [FIELD[kind] for kind in kinds or ()]
        self.checked = self.required if kinds is not None else list(FIELD.values())

    @cached_property
    def rows(self) -> list[tuple[int, Row]]:
        """The complete results, with their indices."""
        return [(i, row) for i, row in enumerate(self.all) if self.fault(row) is None]

    def fault(self, row: Any) -> str | None:
        """Return a description of what a result lacks, or None."""
        if not isinstance(row, dict):
            return f"is a {type(row).__name__}"
        if not is_id(row.get("image_id")) or not is_id(row.get("category_id")) or "score" not in row:
            return "lacks image_id, category_id or score"
        if missing := [field for field in self.required if row.get(field) is None]:
            return f"has no {missing[0]!r}"
        return (
            None
            if any(row.get(field) is not None for field in self.checked)
            else f"has none of {', '.join(self.checked)}"
        )

    def value(self, row: Row, field: str) -> Any:
        """Return the value of a field; None if it is missing or not checked."""
        return row.get(field) if field in self.checked else None


def check_results(
    content: Mapping[str, Any], results: Sequence[Any], *, kinds: Sequence[str] | None = None
) -> list[Finding]:
    """Check results in COCO's format.

    Args:
        content: the content of the annotation file.
        results: one dict for each detected object.
        kinds: the kinds among "bbox", "segm" and "keypoints" that each result must have and that are checked; None:
            those that are present.

    Returns:
        The findings, errors first.

    Raises:
        DataError: the content lacks ``images``, ``annotations`` or ``categories``.
    """
    return run_checks(CHECKS, Results(Annotations(content), results, kinds))


def _each_result(fault: Callable[[Results, Row], str | None]) -> Callable[[Results], Iterator[str]]:
    """Return the ``find`` of a check, given a function that describes the error of one result or returns None."""

    def find(subject: Results) -> Iterator[str]:
        for i, row in subject.rows:
            if case := fault(subject, row):
                yield f"result {i}: {case}"

    return find


def _none(subject: Results) -> Iterator[str]:
    if not subject.all:
        yield "no results"


def _incomplete(subject: Results) -> Iterator[str]:
    for i, row in enumerate(subject.all):
        if fault := subject.fault(row):
            yield f"result {i} {fault}"


def _no_known_category(subject: Results) -> Iterator[str]:
    ids, annotated = {row["category_id"] for _, row in subject.rows}, subject.data.category_of.keys()
    if ids and not ids & annotated:
        yield f"category ids {_first(ids)}; the annotations have {_first(annotated)}"


def _first(ids: Iterable[Any], limit: int = 5) -> str:
    texts = sorted(map(shown, ids))
    return ", ".join(texts[:limit]) + (" ..." if len(texts) > limit else "")


def _unknown_image(subject: Results, row: Row) -> str | None:
    return None if row["image_id"] in subject.data.image_of else f"image_id {shown(row['image_id'])}"


def _unknown_category(subject: Results, row: Row) -> str | None:
    return None if row["category_id"] in subject.data.category_of else f"category_id {shown(row['category_id'])}"


def _wrong_score(subject: Results, row: Row) -> str | None:
    return None if is_number(row["score"]) else f"score {shown(row['score'])}"


def _wrong_box(subject: Results, row: Row) -> str | None:
    box = subject.value(row, "bbox")
    return None if box is None else box_fault(box)


def _box_outside(subject: Results, row: Row) -> str | None:
    box, image = subject.value(row, "bbox"), subject.data.image_of.get(row["image_id"])
    if box is None or image is None or box_fault(box) or not outside(box, image):
        return None
    return f"bbox {box}, image {image['width']} x {image['height']}"


def _wrong_mask(subject: Results, row: Row) -> str | None:
    mask, image = subject.value(row, "segmentation"), subject.data.image_of.get(row["image_id"])
    return None if mask is None or image is None else mask_fault(mask, image["height"], image["width"])


def _wrong_keypoints(subject: Results, row: Row) -> str | None:
    points = subject.value(row, "keypoints")
    if points is None:
        return None
    given = len(points) // 3 if isinstance(points, list) else 0  # for a category that has none, any number is right
    return keypoints_fault(points, subject.data.keypoints_of.get(row["category_id"], max(given, 1)))


CHECKS: tuple[Check[Results], ...] = (
    Check("no results", WARNING, _none, "every metric is 0"),
    Check("incomplete results", ERROR, _incomplete, "expected ids, a score, and a box, mask or keypoints"),
    Check("results of unknown images", ERROR, _each_result(_unknown_image), "expected an image of the annotations"),
    Check("results of no known category", ERROR, _no_known_category, "every metric would be 0"),
    Check("results of unknown categories", WARNING, _each_result(_unknown_category), "they are ignored"),
    Check("wrong scores", ERROR, _each_result(_wrong_score), "expected a finite number"),
    Check("wrong boxes", ERROR, _each_result(_wrong_box), "they overlap nothing"),
    Check("boxes outside the image", WARNING, _each_result(_box_outside), "expected x, y, width, height"),
    Check("wrong masks", ERROR, _each_result(_wrong_mask), "they overlap nothing, or pycocotools hangs"),
    Check("wrong keypoints", ERROR, _each_result(_wrong_keypoints), "they cannot be compared"),
)
"""All checks of results, in the order of the findings."""
