"""Comparison of two ways to do the same work: their time, measured in turn in one process, and their memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.memory import peak_memory
from norton_det.files import read_json
from norton_det.json_text import make_record
from norton_det.registry import Registry
from norton_det.runtime.timing import describe_machine, time_alternating

SIDES = ("ours", "other")


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmarks.

    Attributes:
        configs: folder of the configs.
        ranks: ranks of decompose and similarity.
        sizes: side lengths of the images of backbone, in pixels.
        batch_sizes: batch sizes of backbone.
        train_batch: batch size of a training step on images of 32x32 pixels; on larger images it is an eighth of this.
        device: "cpu" or "cuda".
        amp: use bfloat16 by autocast.
        repeats: number of measured runs of each side.
        memory: measure peak memory in an additional run of each side.
    """

    configs: Path
    ranks: tuple[int, ...] = (1, 4)
    sizes: tuple[int, ...] = (224, 800)
    batch_sizes: tuple[int, ...] = (1, 8)
    train_batch: int = 128
    device: str = "cpu"
    amp: bool = False
    repeats: int = 3
    memory: bool = True


class Side(NamedTuple):
    """One of the two ways to do the work."""

    run: Callable[[], object]
    detail: Callable[[], str] = str
    """Returns a remark on the result; called after the runs."""
    parts: Mapping[str, list[float]] = {}
    """Seconds of the parts of each run; the runs append to them."""


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work.

    Attributes:
        name: name of the comparison.
        ours: prepares the side of this package; the preparation is not timed.
        other: prepares the other side.
        scale: the whole work divided by the sample of it that the other side does.
        in_process: whether this process does the work, so that its memory can be measured.
    """

    name: str
    ours: Callable[[], Side]
    other: Callable[[], Side]
    scale: float = 1.0
    in_process: bool = True


CASES: Registry[Callable[..., Case]] = Registry("benchmark case")
"""Functions that make a case from arguments, which are JSON values, by name."""


@dataclass(frozen=True)
class Row:
    """The result of a comparison.

    Attributes:
        benchmark: name of the benchmark.
        case: registered name of the case.
        numbers: the arguments of the case that are numbers.
        name: name of the comparison.
        ours: median seconds of this package.
        other: median seconds of the other side, scaled to the whole work.
        ratio: median of other / ours over the pairs of runs.
        ours_spread: (largest - smallest) / median of our seconds.
        other_spread: the same of the other side.
        ours_memory: peak memory in MB, see :func:`~benchmarks.memory.peak_memory`; None: not measured.
        other_memory: the same of the other side, not scaled.
        parts: median seconds of the parts that both sides have, [ours, other].
        detail: remarks.
        machine: the machine, see :func:`norton_det.runtime.timing.describe_machine`.
    """

    benchmark: str
    case: str
    numbers: Mapping[str, float]
    name: str
    ours: float
    other: float
    ratio: float
    ours_spread: float
    other_spread: float
    ours_memory: float | None
    other_memory: float | None
    parts: Mapping[str, list[float]] = field(default_factory=dict)
    detail: str = ""
    machine: str = ""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON file; an empty list if there is no file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return []
    rows = read_json(path, list, "rows of benchmarks.run")
    return [make_record(Row, row, f"{path}: row {i}") for i, row in enumerate(rows, 1)]


def compare_sides(benchmark: str, case: str, arguments: Mapping[str, Any], settings: Settings) -> Row:
    """Prepare both sides of a case, run them in turn and return the result.

    Raises:
        UsageError: an unknown case.
    """
    made = CASES[case](**arguments)
    sides = {"ours": made.ours(), "other": made.other()}
    seconds = time_alternating({name: side.run for name, side in sides.items()}, settings.repeats)
    measured = settings.memory and made.in_process
    memory = {name: peak_memory(sides[name].run, settings.device) if measured else None for name in SIDES}
    ours, other = seconds["ours"], seconds["other"]
    common = [part for part in sides["ours"].parts if part in sides["other"].parts]
    return Row(
        benchmark,
        case,
        {name: value for name, value in arguments.items() if type(value) in (int, float)},
        made.name,
        median(ours),
        made.scale * median(other),
        median(made.scale * b / a for a, b in zip(ours, other, strict=True)),
        _spread(ours),
        _spread(other),
        memory["ours"],
        memory["other"],
        {part: [median(sides[name].parts[part][-settings.repeats :]) for name in SIDES] for part in common},
        "; ".join(text for name, side in sides.items() if (text := side.detail())),
        describe_machine(),
    )


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / median(seconds)
