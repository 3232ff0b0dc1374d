"""What a campaign is, and which there are."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """How one case ended.

    Attributes:
        kind: of the fault, as the table counts them ("bit flipped in a tensor", "control: unchanged").
        held: whether the promise was kept.
        note: what happened: an error's message, the difference, what is left.
    """

    kind: str
    held: bool
    note: str = ""


@dataclass(frozen=True)
class Campaign:
    """Cases of one kind of fault.

    Attributes:
        name: of the module in this package, and on the command line.
        title: what is done, for the table.
        promise: what must hold of every case.
        size: number of cases.
        quick: number of them with ``--quick``.
        seconds: a case that takes longer hangs; its process is ended.
        prepare: imports and makes what the cases share, in a folder of their own; runs once in each process.
        run: tries one case: what was prepared, its number, a generator seeded for it alone, and an empty folder.
    """

    name: str
    title: str
    promise: str
    size: int
    quick: int
    seconds: float
    prepare: Callable[[Path], Any]
    run: Callable[[Any, int, Random, Path], Outcome]


NAMES: tuple[str, ...] = (
    "configs",
    "files",
    "hostile",
    "kills",
    "storage",
    "resume",
    "layers",
    "records",
    "evaluation",
    "processes",
)


def campaign(name: str) -> Campaign:
    """Return the campaign of this name: ``CAMPAIGN`` of the module."""
    found: Campaign = import_module(f"benchmarks.faults.{name}").CAMPAIGN
    return found
