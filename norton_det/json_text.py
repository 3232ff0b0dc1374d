"""JSON of strangers: an object in a text, within limits; a record of an object."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from norton_det.errors import DataError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecordT = TypeVar("RecordT", bound="DataclassInstance")

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
        values = json.loads(text, object_pairs_hook=keys_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{what} is a {type(values).__name__}; expected an object")
    _check_depth(values, what)
    return values


def make_record(kind: type[RecordT], values: object, where: str) -> RecordT:
    """Return a dataclass made of the fields of a JSON object.

    Args:
        kind: the dataclass. It checks types and values in ``__post_init__`` with :func:`norton_det.errors.expect`.
        values: the JSON object.
        where: what the object is, for the messages ("results.json: row 2").

    Raises:
        DataError: not an object, an unknown or missing field, or a wrong value. The message begins with ``where``.

    Example:
        >>> from dataclasses import dataclass
        >>> from norton_det.json_text import make_record
        >>> @dataclass
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> make_record(Point, {"x": 1}, "row 2")
        Point(x=1, y=0)
        >>> make_record(Point, {"y": 1}, "row 2")
        Traceback (most recent call last):
        norton_det.errors.DataError: row 2 lacks x
    """
    if not isinstance(values, dict):
        raise DataError(f"{where} is a {type(values).__name__}; expected an object")
    required = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    if unknown := [name for name in values if name not in required]:
        raise DataError(f"{where} has unknown fields {', '.join(unknown)}; expected {', '.join(required)}")
    if missing := [name for name, needed in required.items() if needed and name not in values]:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def is_number(value: Any) -> bool:
    """Tell whether a value of a file is a number, which True and False are not; it may be infinite or NaN.

    Example:
        >>> from norton_det.json_text import is_number
        >>> is_number(2), is_number(0.5), is_number(True), is_number("2")
        (True, True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def keys_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; an ``object_pairs_hook`` of the ``json`` module.

    Raises:
        ValueError: a key comes twice.

    Example:
        >>> from norton_det.json_text import keys_once
        >>> json.loads('{"a": 1, "b": 2}', object_pairs_hook=keys_once)
        {'a': 1, 'b': 2}
    """
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{shown(name)} comes twice")
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
