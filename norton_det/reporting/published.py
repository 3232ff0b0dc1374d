"""The published results, as rows.

``published.csv`` has every row of the tables of V. T. Pham, Y. Zniyed, T. P. Nguyen, *Enhanced network compression
through tensor decompositions and pruning*, 2023, in the order and with the digits of the project's page. The results of
the compared methods are as quoted there. Inconsistent rows are kept as printed: the reductions of ALDS (both),
DECORE-100 (MACs) and HRank-3 (parameters) on VGG-16-BN, and of NORTON's 123.14M DenseNet-40 (MACs), do not agree with
the counts in the same row.
"""

import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from norton_det.errors import expect_choice
from norton_det.formatting import parse_count

DENSE = "dense"
"""Method or label of the baseline of a network and data set."""


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; None or an empty string where nothing is printed.

    Attributes:
        network: registered name of the architecture.
        dataset: "cifar10", "imagenet" or "coco".
        method: "NORTON", the name of a compared method as printed, or "dense" for the baseline.
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent.
        AP: COCO's metrics, 0 to 1, of boxes (Faster R-CNN), masks (Mask R-CNN) or keypoints (Keypoint R-CNN); the
            other fields that begin with AP and AR likewise.
        macs_printed: multiply-accumulates in the published convention, as printed ("126.49M").
        macs_reduction: reduction in percent of the baseline, as printed.
        params_printed: number of parameters, as printed.
        params_reduction: reduction in percent of the baseline, as printed.
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
"""Names of the fields that are metrics of accuracy."""


def published(network: str | None = None, dataset: str | None = None, method: str | None = None) -> list[PublishedRow]:
    """Return the published results in the order of the tables.

    Args:
        network: select an architecture; the suffix ``_cifar`` may be omitted.
        dataset: select a data set.
        method: select a method ("NORTON", "dense", "CHIP", ...).

    Raises:
        UsageError: an unknown name. The message lists the names.

    Example:
        >>> import norton_det as nd
        >>> [(row.macs_printed, row.top1) for row in nd.published("densenet40", method="NORTON")]
        [('213.58M', 94.86), ('168.23M', 94.67), ('123.14M', 94.14)]
    """
    if network is not None and f"{network}_cifar" in names("network"):
        network = f"{network}_cifar"
    rows = list(_rows())
    for field, name in (("network", network), ("dataset", dataset), ("method", method)):
        if name is not None:
            expect_choice(field, name, names(field))
            rows = [row for row in rows if getattr(row, field) == name]
    return rows


@cache
def _rows() -> tuple[PublishedRow, ...]:
    strings = {f.name for f in fields(PublishedRow) if f.type is str}

    def value(name: str, cell: str) -> Any:
        return cell if name in strings else float(cell) if cell else None

    lines = resources.files("norton_det.reporting").joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    return tuple(PublishedRow(**{k: value(k, cell) for k, cell in line.items()}) for line in csv.DictReader(lines))


@cache
def names(field: str) -> tuple[str, ...]:
    """Return the distinct values of a field of the published rows, in the order of the tables."""
    return tuple(dict.fromkeys(getattr(row, field) for row in _rows()))
