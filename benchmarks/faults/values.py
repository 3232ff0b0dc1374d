"""Values that no field expects, and changes of a JSON value at a random place."""

import copy
import json
import math
import re
from collections.abc import Iterator
from random import Random
from typing import Any

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 10**9, 2**31, 2**63, 10**30, 10**400, 1.5, -0.0, 1e-300, 1e308),
    *(math.nan, math.inf, -math.inf, "", "abc", "3", "nan", "\x00", "\x1b[31m", "a\nb", "\ud800", "../../etc/passwd"),
    *("x" * 5000, [], [[]], {}, {"a": 1}, [1] * 1000, ["a"], [None], {"": {}}, [10**9] * 2, [-1, 0], {"0": 0}),
)
"""Of every kind that JSON and YAML have."""
_DEEP = re.compile(r'"<deep (\d+)>"')


def nested(depth: int) -> Any:
    """Return lists in each other."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def dumped(values: Any) -> str:
    """Return values as JSON text; ``<deep N>`` becomes N lists in each other, which json cannot write."""
    return _DEEP.sub(lambda found: "[" * int(found[1]) + "]" * int(found[1]), json.dumps(values))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value that is inside a mapping or list, the outer ones first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(values: dict[str, Any], random: Random) -> tuple[dict[str, Any], str]:
    """Return a copy with one value replaced, removed, added or moved, and where."""
    values = copy.deepcopy(values)
    found = list(places(values))
    top = [path for path in found if len(path) == 1]
    path = random.choice(random.choice([top, found]) or [("new",)])
    owner: Any = values
    for key in path[:-1]:
        owner = owner[key]
    key, where = path[-1], ".".join(map(str, path))
    kind = random.choice(["junk"] * 6 + ["number", "remove", "add", "swap", "deep"])
    if kind == "remove" and len(owner):
        del owner[key]
    elif kind == "add" and isinstance(owner, dict):
        owner[random.choice(["more", "arch", "state", "", "version"])] = junk(random)
    elif kind == "swap":
        other = random.choice(top)[0]
        owner[key] = copy.deepcopy(values.get(other))
    elif kind == "number" and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
        owner[key] = random.choice([owner[key] + 1, owner[key] - 1, owner[key] * 2, -owner[key], owner[key] * 1000])
    elif kind == "deep":
        owner[key] = f"<deep {random.choice([30, 60, 900, 5000])}>"
    else:
        owner[key] = junk(random)
    return values, where


def junk(random: Random) -> Any:
    """Return one of the values, a copy of its own."""
    return copy.deepcopy(random.choice(JUNK))
