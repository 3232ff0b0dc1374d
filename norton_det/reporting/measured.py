"""Measured results, as rows beside the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from norton_det.errors import DataError, expect
from norton_det.files import read_json
from norton_det.json_text import make_record
from norton_det.reporting.published import DENSE, PublishedRow, names

RowT = TypeVar("RowT", bound="PublishedRow | MeasuredRow")


@dataclass(frozen=True)
class MeasuredRow:
    """A measured result. At least one of ``top1`` and ``AP`` is given.

    Attributes:
        network: registered name of an architecture that has published rows.
        dataset: name of the data set of the evaluation.
        label: name of the row in tables and figures; "dense" for the baseline.
        macs_published: multiply-accumulates in the published convention.
        params: number of parameters.
        command: the command that produces the result.
        top1: top-1 accuracy in percent.
        AP: average precision as in :class:`~norton_det.reporting.published.PublishedRow`, 0 to 1.
        epochs: number of epochs of training or fine-tuning.
        minutes: duration of all steps.
        source_weights: the weights from which the network was made.
        note: a remark for readers.

    Raises:
        DataError: a field has a wrong type or value, or both metrics are missing.

    Example:
        >>> from norton_det.reporting.measured import MeasuredRow
        >>> row = MeasuredRow("resnet50", "imagenet", "rank 1", 920_000_000, 6_500_000, "norton-det ...", top1=74.1)
        >>> row.method, row.macs
        ('rank 1', 920000000)
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
        for name in ("dataset", "label", "command"):
            value = getattr(self, name)
            expect(isinstance(value, str) and value != "", name, value, "a string that is not empty")
        expect(self.network in names("network"), "network", self.network, f"one of: {', '.join(names('network'))}")
        for name in ("macs_published", "params"):
            value = getattr(self, name)
            expect(type(value) is int and value > 0, name, value, "a positive integer")
        for name, limit in (("top1", 100), ("AP", 1), ("epochs", 10**6), ("minutes", 10**6)):
            value = getattr(self, name)
            in_range = type(value) in (int, float) and 0 <= value <= limit
            expect(value is None or in_range, name, value, f"a number from 0 to {limit}")
        expect(isinstance(self.source_weights, str | None), "source_weights", self.source_weights, "a string or null")
        expect(isinstance(self.note, str), "note", self.note, "a string")
        if self.top1 is None and self.AP is None:
            raise DataError("neither top1 nor AP is given; expected one of them")

    @property
    def method(self) -> str:
        """``label``, under the name of this field in a ``PublishedRow``."""
        return self.label

    @property
    def macs(self) -> int:
        """``macs_published``, under the name of this field in a ``PublishedRow``."""
        return self.macs_published


def baseline(rows: Sequence[RowT]) -> RowT:
    """Return the dense row among the rows of one network and data set.

    Raises:
        DataError: there is none, or more than one.
    """
    dense = [row for row in rows if row.method == DENSE]
    if len(dense) != 1:
        where = f"{rows[0].network} on {rows[0].dataset}"
        raise DataError(f"{len(dense)} rows of {where} have the label {DENSE!r}; expected one")
    return dense[0]


def read_measured(path: str | Path) -> list[MeasuredRow]:
    """Read measured rows: a JSON list of objects with the fields of :class:`MeasuredRow`, or an empty file.

    Raises:
        DataError: the file is missing or is no such list, a field is wrong, or a network and data set do not have
            exactly one row with the label "dense".
    """
    if Path(path).is_file() and not Path(path).read_bytes().strip():
        return []
    values = read_json(path, list, "a JSON list of measured rows")
    rows = [make_record(MeasuredRow, value, f"{path}: row {i}") for i, value in enumerate(values, 1)]
    for key in dict.fromkeys((row.network, row.dataset) for row in rows):
        try:
            baseline([row for row in rows if (row.network, row.dataset) == key])
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return rows
