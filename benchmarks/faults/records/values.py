"""Values that do not belong into a record: of wrong kinds, too large, not finite, damaged."""

from collections.abc import Callable
from random import Random
from typing import Any

Make = Callable[[Random], Any]
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 7, 1.5, -0.0, True, 10**6, 10**9, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(1e-300, 1e39, 1e300, float("nan"), float("inf"), float("-inf")),
)
NAMES = (
    *("", " ", ".", "..", "x/", "a\0b", "\0", "\ud800", "a\udfffb", "line\nbreak", "tab\t", "\x1b[31mred", "a\u2028b"),
    *("n" * 300, "n" * 100_000, "a/" * 3000 + "b", "%s %d {0}", "__background__", "N/A", "None", "\ufeff"),
)
PATHS = ("../{}", "a/../../{}", "/{}", "/dev/zero", "/etc/passwd", "C:\\{}", "\\\\host\\{}", "~/{}", "./../val2017/{}")
UNUSUAL_NAMES = (
    *("Größe", "物体", "😀👩‍👧", "می‌خواهم", "a b", "rtl \u202b", "e\u0301", "N/A2", "'\"", "%(x)s", "</b>", "N" * 200),
)
"""Names that are unusual, and right."""


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


_OTHERS: tuple[Make, ...] = (
    lambda random: None,
    lambda random: [],
    lambda random: {},
    lambda random: {"a": 1},
    lambda random: [[]],
    lambda random: [None],
    lambda random: "0",
    lambda random: "x",
    lambda random: nested(random.choice([3, 50, 500])),
    lambda random: [random.choice(NUMBERS) for _ in range(random.choice([1, 4, 6, 9, 15, 40]))],
    lambda random: [random.uniform(-100, 100) for _ in range(random.choice([3, 4, 5, 15, 16]))],
    lambda random: ["a", "b"],
    lambda random: "7" * 10_000,
)


def junk(random: Random) -> Any:
    """Return any value."""
    return random.choice([number, number, name, other, other, mask])(random)


def number(random: Random) -> Any:
    """Return a number of any size."""
    return random.choice(NUMBERS)


def name(random: Random) -> str:
    """Return a text that is hardly a name."""
    return random.choice(NAMES)


def other(random: Random) -> Any:
    """Return a value that is neither a number nor a name."""
    return random.choice(_OTHERS)(random)


def mask(random: Random, side: int = 64) -> Any:
    """Return a segmentation that pycocotools does not decode, hangs at, or dies of."""
    return random.choice(_MASKS)(random, side)


def _counts(random: Random, side: int) -> Any:
    area = side * side
    choices: list[Any] = [
        *([], [area + 1], [area - 1, 2], [-1, area + 1], [1.5, area - 1.5], [2**32, area], [2**63], [10**400]),
        *([None], ["1"], [True] * area, [[area]], None, 7, "", "~", "0" * 5000, "\0", "\ud800", "é", "oooooooooooo1"),
        *("".join(chr(random.randrange(48, 112)) for _ in range(random.randrange(1, 40))), [2**31, 2**31, area]),
        *([0] * 5000, [0, 0, 0, area + 4], {"a": 1}, float("nan"), [float("nan"), area], [area, 2**64 - area]),
    ]
    return {"size": [side, side], "counts": random.choice(choices)}


def _sizes(random: Random, side: int) -> Any:
    area, most = side * side, 10**6
    choices: list[Any] = [
        *([side], [side, side, side], [0, 0], [-side, -side], [side * 2, side], [1, area], [float(side), side], None),
        *(
            [most, most],
            [2**31, 2**31],
            [2**63, 1],
            [10**400, 1],
            "ab",
            ["64", "64"],
            [True, area],
            [side, None],
            7,
            {},
        ),
    ]
    return {"size": random.choice(choices), "counts": random.choice([[area], "PT1", [most * most], [2**62]])}


def _polygons(random: Random, side: int) -> Any:
    far = [random.choice([-1, 1]) * random.choice([10**3, 10**5, 10**6]) for _ in range(random.choice([6, 8, 400]))]
    values = [random.choice(NUMBERS) for _ in range(random.choice([6, 8]))]
    choices: list[Any] = [
        *([far], [far[:5]], [values], [[]], [[1, 1, 9, 1]], [[1, 1, 9, 1, 9, 9, 1]], [[5, 5] * 3], [[1] * 7], ""),
        *([[-9, -9, -5, -9, -5, -5]], [[99, 99, 150, 99, 150, 150]], [[10**400] * 6], [["1"] * 6], [None], [{}], [""]),
        *(
            [[0, 0, 10**6, 0] * 2000],
            [[0, 0, 10**6, 10**6] * 50_000],
            [[[1, 1, 5, 1, 5, 5]]],
            nested(900),
            [["ab"] * 6],
        ),
        *([[1, 1, 9, 1, 9, 9], [1, 1]], [True, [1, 1, 5, 1, 5, 5]], [[True] * 6], [[0.1] * 6] * 3000),
    ]
    return random.choice(choices)


_MASKS: tuple[Callable[[Random, int], Any], ...] = (_counts, _sizes, _polygons)
