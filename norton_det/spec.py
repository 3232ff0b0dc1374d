"""What a compressed network is: a standard architecture plus a small, readable spec; and the notation of rates."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from typing import Any

from norton_det.errors import DataError, UsageError

_TERM = re.compile(r"\[([^\[\]]*)\](?:\*(\d+))?")


@dataclass(frozen=True)
class Spec:
    """The description from which a compressed network is built.

    Attributes:
        arch: registered name of the architecture.
        num_classes: number of outputs of the classifier (detectors: background included, as in torchvision).
        ranks: rank of each decomposed layer, by the layer's name. Layers not named are dense.
        widths: number of channels of each narrowed channel group, by the group's name. Others have their full width.
        decomposition: registered name of the decomposition of the layers in ``ranks``.
        kept: which of the group's original channels were kept, ascending, where that is known. It decides how a
            shortcut between groups of different channels is wired; without it the first ``widths[group]`` are meant.
        options: further keyword arguments of the architecture's builder (JSON values).
        provenance: where the weights came from and what was done to them; for people, nothing reads it.
    """

    arch: str
    num_classes: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    decomposition: str = "cp"
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check types and values.

        Raises:
            DataError: a field is not what it should be.
        """
        _expect(isinstance(self.arch, str), "arch", self.arch, "a string")
        _expect(isinstance(self.decomposition, str), "decomposition", self.decomposition, "a string")
        _expect(_is_count(self.num_classes), "num_classes", self.num_classes, "a positive integer")
        for name in ("ranks", "widths", "kept", "options", "provenance"):
            _expect(isinstance(getattr(self, name), Mapping), name, getattr(self, name), "a mapping")
        for name in ("ranks", "widths"):
            for key, value in getattr(self, name).items():
                _expect(_is_count(value), f"{name}[{key!r}]", value, "a positive integer")
        for group, channels in self.kept.items():
            ascending = all(_is_count(c + 1) for c in channels) and list(channels) == sorted(set(channels))
            _expect(ascending, f"kept[{group!r}]", channels, "distinct channel numbers in ascending order")
            width = self.widths.get(group)
            _expect(width == len(channels), f"kept[{group!r}]", f"{len(channels)} channels", f"widths[...] = {width}")

    def to_json(self, indent: int | None = None) -> str:
        """Return the spec as JSON text, fields in order.

        Raises:
            UsageError: an option is no JSON value (a module given to a detector's builder, say).
        """
        for key, value in self.options.items():
            try:
                json.dumps(value)
            except TypeError:
                raise UsageError(
                    f"options[{key!r}] is a {type(value).__name__}, which a file cannot hold; "
                    "save the state dict instead and rebuild with the same argument"
                ) from None
        return json.dumps(asdict(self), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: not JSON, an unknown or missing field, or a wrong value.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"spec is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"spec is a {type(values).__name__}; expected an object")
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise DataError(f"spec has unknown fields {', '.join(unknown)}; expected {', '.join(known)}")
        if missing := [name for name in ("arch", "num_classes") if name not in values]:
            raise DataError(f"spec lacks {', '.join(missing)}")
        return cls(**values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _expect(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise DataError(f"spec field {name} is {value!r}; expected {expected}")


def parse_rates(text: str) -> list[float]:
    """Read the publication's notation of pruning rates: ``"[0.]+[0.1]*2+[0.4]*5"`` is 0, 0.1 twice, 0.4 five times.

    A term may list several rates: ``"[0.1, 0.2]*2"`` is 0.1, 0.2, 0.1, 0.2.

    Raises:
        UsageError: the text is malformed or a rate lies outside 0 <= rate < 1.
    """
    rates: list[float] = []
    position = 0
    text = "".join(text.split())
    while True:
        term = _TERM.match(text, position)
        if term is None:
            raise UsageError(
                f"rates {text!r}: expected a term like [0.1] or [0.1]*5 at character {position + 1}, "
                f"got {text[position : position + 10]!r}"
            )
        rates += [_rate(number, text) for number in term[1].split(",")] * int(term[2] or 1)
        position = term.end()
        if position == len(text):
            return rates
        if text[position] != "+":
            raise UsageError(f"rates {text!r}: expected + at character {position + 1}, got {text[position]!r}")
        position += 1


def _rate(number: str, text: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        raise UsageError(f"rates {text!r}: {number!r} is no number") from None
    return check_rate(rate, f"rates {text!r}")


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
    terms = []
    for rate, run in groupby(rates):
        count = len(list(run))
        number = f"{rate:.12g}" if rate else "0."
        terms.append(f"[{number}]" + (f"*{count}" if count > 1 else ""))
    return "+".join(terms)
