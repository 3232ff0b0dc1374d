"""The publication's notation of pruning rates and of ranks: ``[0.]+[0.1]*2+[0.4]*5``."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from norton_det.errors import UsageError, shown
from norton_det.spec import Rank, is_rank

T = TypeVar("T")
MOST_VALUES = 10_000
"""Limit of the values that a text stands for."""
_TERM = re.compile(r"\[([^\[\]]*)\](?:\*(\d+))?")
_RANK = re.compile(r"(\d+)(?:x(\d+))?")


def parse_rates(text: str) -> list[float]:
    """Read the publication's notation of pruning rates: ``"[0.]+[0.1]*2+[0.4]*5"`` is 0, 0.1 twice, 0.4 five times.

    A term may list several rates: ``"[0.1, 0.2]*2"`` is 0.1, 0.2, 0.1, 0.2.

    Raises:
        UsageError: the text is malformed, stands for more than 10,000 values, or a rate lies outside 0 <= rate < 1.
    """
    return _parse(text, "rates", "0.1", _rate)


def parse_ranks(text: str) -> list[Rank]:
    """Read a rank for each layer in the notation of the rates: ``"[0]+[2]*9+[3]*18"``; 0 leaves a layer dense.

    Tucker-2 may have two ranks: ``"[8x12]*9"``.

    Raises:
        UsageError: the text is malformed or a rank is no number.
    """
    return _parse(text, "rank", "2", _rank)


def _parse(text: str, what: str, example: str, read: Callable[[str, str], T]) -> list[T]:
    values: list[T] = []
    position = 0
    text = "".join(text.split())
    where = f"{what} {shown(text)}"
    while True:
        term = _TERM.match(text, position)
        if term is None:
            raise UsageError(
                f"{where}: expected a term like [{example}] or [{example}]*5 at character {position + 1}, "
                f"got {text[position : position + 10]!r}"
            )
        numbers = term[1].split(",")
        times = int((term[2] or "1")[:9])  # more digits are too large in any case
        if len(values) + len(numbers) * times > MOST_VALUES:
            raise UsageError(f"{where[:80]}: more than {MOST_VALUES:,} values; expected one for each layer or group")
        values += [read(number, where) for number in numbers] * times
        position = term.end()
        if position == len(text):
            return values
        if text[position] != "+":
            raise UsageError(f"{where}: expected + at character {position + 1}, got {text[position]!r}")
        position += 1


def _rate(number: str, where: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        raise UsageError(f"{where}: {shown(number)} is no number") from None
    return check_rate(rate, where)


def _rank(number: str, where: str) -> Rank:
    match = _RANK.fullmatch(number)
    rank: Rank = -1
    if match is not None:
        first, second = (int((digits or "0")[:20]) for digits in match.groups())  # more are too large in any case
        rank = (first, second) if match[2] else first
    if rank != 0 and not is_rank(rank):
        raise UsageError(f"{where}: {shown(number)} is no rank; expected a number like 2, or two like 8x12")
    return rank


def check_rate(rate: float, where: str) -> float:
    """Return ``rate`` if 0 <= rate < 1.

    Raises:
        UsageError: it is not.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"{where}: rate {rate} is outside 0 <= rate < 1")
    return rate


def format_rates(rates: Sequence[float]) -> str:
    """Write rates in the publication's notation, equal neighbours as one term; :func:`parse_rates` reads it back."""
    return _format([f"{rate:.12g}" if rate else "0." for rate in rates])


def format_ranks(ranks: Sequence[Rank]) -> str:
    """Write ranks as :func:`parse_ranks` reads them, equal neighbours as one term."""
    return _format([f"{rank[0]}x{rank[1]}" if isinstance(rank, tuple) else str(rank) for rank in ranks])


def _format(values: Sequence[str]) -> str:
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    return "+".join(f"[{value}]" + (f"*{count}" if count > 1 else "") for value, count in runs)
