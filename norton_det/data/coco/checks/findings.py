"""Checks and their findings: a check searches for one kind of error and reports it as a finding."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from norton_det.errors import DataError

logger = logging.getLogger(__name__)
T = TypeVar("T")

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Severities: training or evaluation would be wrong; it may be wrong; information."""


@dataclass(frozen=True)
class Finding:
    """The result of a check that found something.

    Attributes:
        check: name of the check, which describes the error ("boxes without area").
        severity: "error", "warning" or "note".
        count: number of cases.
        examples: a description of each case ("annotation 7: bbox [1, 2, 0, 5]").
        message: the consequence, or what was expected.

    Example:
        >>> from norton_det.data.coco.checks.findings import Finding
        >>> print(Finding("boxes without area", "warning", 2, ["annotation 7", "annotation 9"], "left out in training"))
        boxes without area: annotation 7 and 1 more; left out in training
    """

    check: str
    severity: str
    count: int
    examples: list[str]
    message: str

    def __str__(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"{self.check}: {self.examples[0]}{more}; {self.message}"


@dataclass(frozen=True)
class Check(Generic[T]):
    """A check for one kind of error.

    Attributes:
        name: a description of the error.
        severity: severity of the error.
        find: yields a description of each case.
        message: the consequence, or what was expected.
        field: the field of the objects that has the error; empty: none, or one that everybody reads.
    """

    name: str
    severity: str
    find: Callable[[T], Iterable[str]]
    message: str
    field: str = ""


def run_checks(checks: Sequence[Check[T]], subject: T) -> list[Finding]:
    """Return the findings of the checks on ``subject``: errors, then warnings, then notes."""
    findings = []
    for check in checks:
        examples = [_cut(example) for example in check.find(subject)]
        if examples:
            findings.append(Finding(check.name, check.severity, len(examples), examples, check.message))
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def _cut(text: str, limit: int = 500) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def raise_errors(findings: Iterable[Finding], source: str | Path) -> None:
    """Log the warnings among the findings and raise an exception for the errors.

    Args:
        findings: the findings.
        source: the file that was checked.

    Raises:
        DataError: there is an error. The message contains the first one and the number of other kinds of errors.
    """
    errors = []
    for finding in findings:
        if finding.severity == ERROR:
            errors.append(finding)
        elif finding.severity == WARNING:
            logger.warning("%s: %s", source, finding)
    if errors:
        more = f" (other kinds of errors: {len(errors) - 1}; see norton-det check-data)" if len(errors) > 1 else ""
        raise DataError(f"{source}: {errors[0]}{more}")
