"""What was published, and what was measured here, as rows.

``published.csv`` holds every row of the tables of V. T. Pham, Y. Zniyed, T. P. Nguyen, *Enhanced network compression
through tensor decompositions and pruning*, 2023, in the order and with the digits of the project's page; figures of the
compared methods are as quoted there. Rows that contradict themselves stay as printed: the reductions of ALDS (both),
DECORE-100 (MACs) and HRank-3 (parameters) on VGG-16-BN and of NORTON's 123.14M DenseNet-40 (MACs) are not those of the
counts beside them.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from norton_det.errors import DataError, UsageError

DENSE = "dense"
"""The method or label of a row that the others of its network and dataset are compared with."""
_UNITS = {"M": 10**6, "G": 10**9}
RowT = TypeVar("RowT", bound="PublishedRow | MeasuredRow")


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; None or an empty text where nothing was printed.

    Attributes:
        network: registered name of the architecture.
        dataset: "cifar10", "imagenet" or "coco".
        method: "NORTON", the name of a compared method as printed, or "dense" for the baseline.
        top1: accuracy in percent.
        top5: accuracy in percent.
        AP: COCO's averages, 0 to 1: of boxes (Faster R-CNN), masks (Mask R-CNN), keypoints (Keypoint R-CNN).
        macs_printed: multiply-accumulates in the published convention, as printed: "126.49M".
        macs_reduction: percent of the baseline, as printed.
        params_printed: parameters, as printed.
        params_reduction: percent of the baseline, as printed.
        source: publication and table.
    """

    network: str
    dataset: str
    method: str
    top1: float | None
    top5: float | None
    AP: float | None
    AP50: float | None
    AP75: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    AR: float | None
    AR50: float | None
    AR75: float | None
    macs_printed: str
    macs_reduction: float | None
    params_printed: str
    params_reduction: float | None
    source: str

    @property
    def macs(self) -> int | None:
        """``macs_printed`` as a number."""
        return parse_count(self.macs_printed) if self.macs_printed else None

    @property
    def params(self) -> int | None:
        """``params_printed`` as a number."""
        return parse_count(self.params_printed) if self.params_printed else None


METRICS = tuple(f.name for f in fields(PublishedRow) if f.name.startswith(("top", "AP", "AR")))
"""Names of the figures of accuracy."""


def parse_count(printed: str) -> int:
    """Return a count as printed in tables ("126.49M", "0.92G") as a number."""
    return int(Decimal(printed[:-1]) * _UNITS[printed[-1]])


def published(network: str | None = None, dataset: str | None = None, method: str | None = None) -> list[PublishedRow]:
    """Return the published rows, in the order of the tables.

    Args:
        network: only those of this architecture; ``_cifar`` may be left out of the name.
        dataset: only those of this dataset.
        method: only those of this method ("NORTON", "dense", "CHIP", ...).

    Raises:
        UsageError: an unknown name; the message lists the known ones.
    """
    if network is not None and f"{network}_cifar" in _names("network"):
        network = f"{network}_cifar"
    rows = list(_rows())
    for field, wanted in (("network", network), ("dataset", dataset), ("method", method)):
        if wanted is None:
            continue
        if wanted not in _names(field):
            raise UsageError(f"unknown {field} {wanted!r}; expected one of: {', '.join(_names(field))}")
        rows = [row for row in rows if getattr(row, field) == wanted]
    return rows


@cache
def _rows() -> tuple[PublishedRow, ...]:
    texts = {f.name for f in fields(PublishedRow) if f.type is str}

    def value(name: str, cell: str) -> Any:
        return cell if name in texts else float(cell) if cell else None

    lines = resources.files("norton_det").joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(PublishedRow(**{k: value(k, cell) for k, cell in line.items()}) for line in csv.DictReader(lines))


@cache
def _names(field: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(getattr(row, field) for row in _rows()))


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
        self._expect(self.network in _names("network"), "network", f"one of: {', '.join(_names('network'))}")
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
