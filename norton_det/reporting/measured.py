"""Our own results, as rows beside the published ones."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from norton_det.errors import DataError
from norton_det.reporting.published import DENSE, PublishedRow, names

RowT = TypeVar("RowT", bound="PublishedRow | MeasuredRow")


@dataclass(frozen=True)
class MeasuredRow:
    """One result of our own; at least one of ``top1`` and ``AP`` is given.

    Attributes:
        network: registered name of an architecture that has published rows.
        dataset: what it was evaluated on.
        label: what the row is called in tables and pictures; "dense" for the baseline.
        macs_published: multiply-accumulates in the published convention.
        params: number of parameters.
        command: what has to be run to get this row.
        top1: accuracy in percent.
        AP: as in :class:`PublishedRow`, 0 to 1.
        epochs: of training or fine-tuning.
        minutes: that it took.
        source_weights: what it was made from.
        note: anything else that a reader has to know.
    """

    network: str
    dataset: str
    label: str
    macs_published: int
    params: int
    command: str
    top1: float | None = None
    AP: float | None = None
    epochs: float | None = None
    minutes: float | None = None
    source_weights: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Check types and values.

        Raises:
            DataError: a field is not what it should be.
        """
        for name in ("dataset", "label", "command"):
            self._expect(isinstance(getattr(self, name), str) and getattr(self, name) != "", name, "a text")
        self._expect(self.network in names("network"), "network", f"one of: {', '.join(names('network'))}")
        for name in ("macs_published", "params"):
            self._expect(type(getattr(self, name)) is int and getattr(self, name) > 0, name, "a positive integer")
        for name, most in (("top1", 100), ("AP", 1), ("epochs", 10**6), ("minutes", 10**6)):
            value = getattr(self, name)
            number = type(value) in (int, float) and 0 <= value <= most
            self._expect(value is None or number, name, f"a number from 0 to {most}")
        self._expect(isinstance(self.source_weights, str | None), "source_weights", "a text or null")
        self._expect(isinstance(self.note, str), "note", "a text")
        if self.top1 is None and self.AP is None:
            raise DataError("has neither top1 nor AP; expected one of them")

    def _expect(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise DataError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def method(self) -> str:
        """``label``, by the name that it has in a :class:`PublishedRow`."""
        return self.label

    @property
    def macs(self) -> int:
        """``macs_published``, by the name that it has in a :class:`PublishedRow`."""
        return self.macs_published


def baseline(rows: Sequence[RowT]) -> RowT:
    """Return the dense row of those of one network and dataset.

    Raises:
        DataError: there is not exactly one.
    """
    found = [row for row in rows if row.method == DENSE]
    if len(found) != 1:
        where = f"{rows[0].network} on {rows[0].dataset}"
        raise DataError(f"{len(found)} rows of {where} have the label {DENSE!r}; expected one")
    return found[0]


def read_measured(path: str | Path) -> list[MeasuredRow]:
    """Read our own results: a JSON list of objects with the fields of :class:`MeasuredRow`. An empty file is no rows.

    Raises:
        DataError: the file is missing or no such list, a field is wrong, or a network and dataset do not have exactly
            one row with the label "dense".
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if text.strip() else []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected a JSON list of measured rows") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{path}: is a {type(values).__name__}; expected a list of rows")
    rows = [_measured(value, f"{path}: row {i}") for i, value in enumerate(values, 1)]
    for key in dict.fromkeys((row.network, row.dataset) for row in rows):
        try:
            baseline([row for row in rows if (row.network, row.dataset) == key])
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return rows


def _measured(value: Any, where: str) -> MeasuredRow:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}; expected an object")
    known = {f.name: f.default is MISSING for f in fields(MeasuredRow)}
    if unknown := [name for name in value if name not in known]:
        raise DataError(f"{where} has unknown fields {', '.join(unknown)}; expected {', '.join(known)}")
    if missing := [name for name, required in known.items() if required and name not in value]:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    try:
        return MeasuredRow(**value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
