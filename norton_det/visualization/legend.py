"""What labels and keypoints are called, and which keypoints are joined by lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from norton_det.errors import DataError, shown
from norton_det.files import read_json

_LIMBS = ("shoulder elbow", "elbow wrist", "shoulder hip", "hip knee", "knee ankle", "eye ear", "ear shoulder")
_OF_PERSONS = (
    *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (limb.split() for limb in _LIMBS)),
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("left_eye", "right_eye"),
    ("nose", "left_eye"),
    ("nose", "right_eye"),
)
"""COCO's skeleton, by the names of its keypoints."""


@dataclass(frozen=True)
class Legend:
    """Names of the labels and of the keypoints, and lines between keypoints.

    Attributes:
        names: the names of the labels. A label without a name is shown as a number.
        skeleton: pairs of indices, from 0, of keypoints that are joined by a line.
        keypoints: the names of the keypoints in order, or none.

    Example:
        >>> from norton_det.visualization.legend import Legend
        >>> Legend({1: "person"}, skeleton=[(0, 1)]).names[1]
        'person'
    """

    names: Mapping[int, str] = field(default_factory=dict)
    skeleton: Sequence[tuple[int, int]] = ()
    keypoints: Sequence[str] = ()

    @classmethod
    def read(cls, path: str | Path) -> "Legend":
        """Return the names and the skeleton in the categories of a COCO annotation file.

        Raises:
            DataError: the file is missing, is not JSON, has no categories, or a skeleton of other than its keypoints.
        """
        categories = read_json(path, dict, "COCO annotations").get("categories")
        if not isinstance(categories, list) or not all(
            isinstance(c, dict) and isinstance(c.get("id"), (int, str)) for c in categories
        ):
            raise DataError(f"{path}: lacks categories with ids; expected COCO annotations")
        names = {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in categories}
        points = [str(name) for name in _first(categories, "keypoints")]
        lines = _first(categories, "skeleton")
        for line in lines:
            if not (isinstance(line, list) and len(line) == 2 and all(n in range(1, len(points) + 1) for n in line)):
                raise DataError(
                    f"{path}: categories: skeleton has {shown(line)}; expected pairs of keypoints, 1 to {len(points)}"
                )
        return cls(names, [(int(a) - 1, int(b) - 1) for a, b in lines], points)

    @classmethod
    def of_names(cls, classes: Sequence[str], keypoints: Sequence[str] = ()) -> "Legend":
        """Return the legend of a detector with these classes (by label) and keypoints, joined if they are COCO's.

        Example:
            >>> from norton_det.visualization.legend import Legend
            >>> Legend.of_names(["__background__", "person"], ["nose", "left_eye", "tail"])
            Legend(names={1: 'person'}, skeleton=[(0, 1)], keypoints=('nose', 'left_eye', 'tail'))
        """
        index = {name: i for i, name in enumerate(keypoints)}
        lines = [(index[a], index[b]) for a, b in _OF_PERSONS if a in index and b in index]
        return cls({label: name for label, name in enumerate(classes) if label}, lines, tuple(keypoints))

    def name(self, label: int) -> str:
        """Return the name of a label."""
        return self.names.get(label, str(label))

    def sides(self, count: int) -> list[str]:
        """Return on which side of the body each of ``count`` keypoints is: "left", "right", or "" if it says neither.

        Example:
            >>> from norton_det.visualization.legend import Legend
            >>> Legend(keypoints=["nose", "left_eye", "eye R", "tailright"]).sides(5)
            ['', 'left', 'right', '', '']
        """
        return [*map(_side, self.keypoints[:count]), *[""] * (count - len(self.keypoints))]


def _first(categories: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    """Return the field of the first category that has it; an empty list if none has."""
    values = (category.get(field) for category in categories)
    return next((value for value in values if value and isinstance(value, list)), [])


def _side(name: str) -> str:
    words = {"l": "left", "r": "right"}
    found = {words.get(word, word) for word in re.split(r"[\W_]+", name.lower())} & {"left", "right"}
    return found.pop() if len(found) == 1 else ""
