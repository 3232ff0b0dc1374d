"""A check looks for one kind of fault; what it finds is a finding."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from norton_det.errors import DataError

logger = logging.getLogger(__name__)
T = TypeVar("T")

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Severities: training or evaluation would be wrong; it may be; good to know."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: name of the check, which says what is there ("boxes without area").
        severity: "error", "warning" or "note".
        count: how many there are.
        examples: each of them in words ("annotation 7: bbox [1, 2, 0, 5]").
        message: what comes of it, or what was expected.
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
    """A check of one kind of fault.

    Attributes:
        name: says what is there when it finds something.
        severity: of what it finds.
        find: yields each case in words.
        message: what comes of it, or what was expected.
    """

    name: str
    severity: str
    find: Callable[[T], Iterable[str]]
    message: str


def run_checks(checks: Sequence[Check[T]], subject: T) -> list[Finding]:
    """Return what the checks find in ``subject``, errors first, then warnings, then notes."""
    findings = []
    for check in checks:
        examples = list(check.find(subject))
        if examples:
            findings.append(Finding(check.name, check.severity, len(examples), examples, check.message))
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def raise_errors(findings: Iterable[Finding], source: str | Path) -> None:
    """Log the warnings and refuse the errors.

    Args:
        findings: what was found
        source: in this file.

    Raises:
        DataError: there is an error; the message tells the first, and how many kinds there are.
    """
    errors = []
    for finding in findings:
        if finding.severity == ERROR:
            errors.append(finding)
        elif finding.severity == WARNING:
            logger.warning("%s: %s", source, finding)
    if errors:
        more = f" (and {len(errors) - 1} more kinds of errors: see tools/check_data.py)" if len(errors) > 1 else ""
        raise DataError(f"{source}: {errors[0]}{more}")
