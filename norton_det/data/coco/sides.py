"""Left and right keypoints: which ones exchange their places in a mirrored image."""

import logging
import re
from collections.abc import Callable, Hashable, Iterable, Sequence

from norton_det.errors import UsageError

logger = logging.getLogger(__name__)

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def partners(names: Iterable[str]) -> dict[str, str | None]:
    """Return the keypoint on the other side for each keypoint that has a side; None if it is missing or not certain.

    Two keypoints are partners if their names differ by their sides alone, in upper or lower case: by all words that are
    left, right, L or R; if there is no such partner, by one "left" or "right" anywhere; or else by one letter. A name
    without partner has a side only if one of its words is left, right, L or R.

    Args:
        names: names of the keypoints.

    Example:
        >>> from norton_det.data.coco.sides import partners
        >>> partners(["nose", "L_eye", "R_eye", "lhip", "rhip", "left_knee", "leftover"])
        {'L_eye': 'R_eye', 'R_eye': 'L_eye', 'lhip': 'rhip', 'rhip': 'lhip', 'left_knee': None}
    """
    names = list(dict.fromkeys(names))
    partner_of: dict[str, str] = {}
    sided = {name for name in names if not set(_words(name)).isdisjoint(_OTHER)}
    for key, mirrored in _RULES:
        rest = [name for name in names if name not in partner_of]
        candidates = {name: [o for o in rest if o != name and key(o) in mirrored(key(name))] for name in rest}
        sided.update(name for name, others in candidates.items() if others)
        partner_of |= {a: b[0] for a, b in candidates.items() if len(b) == 1 and candidates[b[0]] == [a]}
    return {name: partner_of.get(name) for name in names if name in sided}


def flipped_order(names: Sequence[str], pairs: Iterable[Sequence[str]] | None = None) -> list[int]:
    """Return the order of keypoints in a flipped image: the index of the keypoint that takes each one's position.

    A line with the pairs is logged.

    Args:
        names: names of the keypoints.
        pairs: the keypoints that exchange their places; None: by their names, see :func:`partners`.

    Raises:
        UsageError: a name in a pair is unknown or occurs twice; or, without pairs, a keypoint has a side and there is
            none on the other side, or more than one.

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
                f"keypoint {name!r} has a side and no certain partner among {', '.join(names)}; "
                "expected pairs (--keypoint-pairs) or no flip (--no-hflip)"
            )
        order.append(names.index(partner))
    if names:
        exchanged = ", ".join(f"{names[a]}/{names[b]}" for a, b in enumerate(order) if a < b)
        others = ", ".join(name for name in names if name not in partner_of)
        logger.info("keypoints that a flip exchanges: %s; that it does not: %s", exchanged or "none", others or "none")
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


def _all_words_mirrored(words: tuple[str, ...]) -> set[Hashable]:
    return {tuple(_OTHER.get(word, word) for word in words)}


def _one_mirrored(mark: str) -> Callable[[str], set[Hashable]]:
    """Return a function from a name to the names in which one part that matches ``mark`` is of the other side."""

    def mirrored(name: str) -> set[Hashable]:
        found = re.finditer(mark, name)
        return {name[: part.start()] + _OTHER[part.group()] + name[part.end() :] for part in found}

    return mirrored


# As what names are compared, and what they would be on the other side; what is more certain comes first.
_RULES: tuple[tuple[Callable[[str], Hashable], Callable[..., set[Hashable]]], ...] = (
    (_words, _all_words_mirrored),
    (str.lower, _one_mirrored("left|right")),
    (str.lower, _one_mirrored("[lr]")),
)
