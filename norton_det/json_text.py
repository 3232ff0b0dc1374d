"""JSON of strangers: an object in a text, within limits."""

import json
from collections.abc import Iterable
from typing import Any

from norton_det.errors import DataError

MOST_LEVELS = 50
"""Limit of how deep values are nested."""


def json_object(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Args:
        text: the text.
        what: the object, for the messages ("spec").

    Raises:
        DataError: the text is no JSON object, a name in it comes twice, or values are nested too deep.

    Example:
        >>> from norton_det.json_text import json_object
        >>> json_object('{"rank": 2}', "spec")
        {'rank': 2}
        >>> json_object('{"rank": 2, "rank": 3}', "spec")
        Traceback (most recent call last):
        norton_det.errors.DataError: spec is not JSON: 'rank' comes twice
    """
    try:
        values = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{what} is a {type(values).__name__}; expected an object")
    _check_depth(values, what)
    return values


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} comes twice")
        values[name] = value
    return values


def _check_depth(values: Any, what: str) -> None:
    level = [values]
    for _ in range(MOST_LEVELS):
        level = [inner for value in level for inner in _parts(value)]
        if not level:
            return
    raise DataError(f"{what} has values in more than {MOST_LEVELS} levels")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
