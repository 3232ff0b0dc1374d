"""Left and right keypoints: which ones exchange their places in a mirrored image."""

import re
from collections.abc import Iterable, Sequence

from norton_det.errors import UsageError

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def partners(names: Iterable[str]) -> dict[str, str | None]:
    """Return the keypoint on the other side for each keypoint that has a side; None if there is no such keypoint.

    A side is left, right, L or R as a word of the name, or left or right at the beginning or the end of a word.

    Args:
        names: names of the keypoints.

    Example:
        >>> from norton_det.data.coco.sides import partners
        >>> partners(["nose", "L_eye", "R_eye", "leftEar", "rightEar", "left_knee"])
        {'L_eye': 'R_eye', 'R_eye': 'L_eye', 'leftEar': 'rightEar', 'rightEar': 'leftEar', 'left_knee': None}
    """
    words_of = {name: _words(name) for name in names}
    name_of = {words: name for name, words in words_of.items()}
    found = {}
    for name, words in words_of.items():
        mirrored = tuple(map(_mirrored, words))
        if mirrored != words and (mirrored in name_of or any(map(_has_side, words))):
            found[name] = name_of.get(mirrored)
    return found


def flipped_order(names: Sequence[str], pairs: Iterable[Sequence[str]] | None = None) -> list[int]:
    """Return the order of keypoints in a flipped image: the index of the keypoint that takes each one's position.

    Args:
        names: names of the keypoints.
        pairs: the keypoints that exchange their places; None: by their names, see :func:`partners`.

    Raises:
        UsageError: a name in a pair is unknown or occurs twice; or, without pairs, a keypoint has a side and there is
            none on the other side.

    Example:
        >>> from norton_det.data.coco.sides import flipped_order
        >>> flipped_order(["nose", "left_eye", "right_eye"])
        [0, 2, 1]
        >>> flipped_order(["nose", "a", "b"], pairs=[("a", "b")])
        [0, 2, 1]
    """
    partner_of = partners(names) if pairs is None else _given(names, pairs)
    order = []
    for name in names:
        partner = partner_of.get(name, name)
        if partner is None:
            raise UsageError(
                f"keypoint {name!r} has a side and no partner among {', '.join(names)}; "
                "expected pairs (--keypoint-pairs) or no flip (--no-hflip)"
            )
        order.append(names.index(partner))
    return order


def _given(names: Sequence[str], pairs: Iterable[Sequence[str]]) -> dict[str, str | None]:
    partner_of: dict[str, str | None] = {}
    for pair in pairs:
        for name, partner in (pair, pair[::-1]):
            if name not in names:
                raise UsageError(f"pair {','.join(pair)}: unknown keypoint {name!r}; expected {', '.join(names)}")
            if name in partner_of:
                raise UsageError(f"pair {','.join(pair)}: {name!r} occurs twice; expected each keypoint in one pair")
            partner_of[name] = partner
    return partner_of


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _BETWEEN_WORDS.split(name) if word)


def _has_side(word: str) -> bool:
    return word in _OTHER or word.startswith(("left", "right"))


def _mirrored(word: str) -> str:
    if word in _OTHER:
        return _OTHER[word]
    for side in ("left", "right"):
        if word.startswith(side):
            return _OTHER[side] + word.removeprefix(side)
        if word.endswith(side):
            return word.removesuffix(side) + _OTHER[side]
    return word
