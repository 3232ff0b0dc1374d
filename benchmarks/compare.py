"""A comparison: two ways to the same end, timed in turn in one process, and the memory that each takes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.memory import peak_memory
from norton_det.errors import DataError
from norton_det.registry import Registry
from norton_det.runtime.timing import describe_machine, time_alternating

SIDES = ("ours", "other")


@dataclass(frozen=True)
class Settings:
    """What the benchmarks are run with.

    Attributes:
        configs: folder of the configs.
        ranks: of decompose and similarity.
        sizes: heights and widths of images for backbone.
        batch_sizes: for backbone.
        train_batch: images in a step of training, for images of 32 x 32; an eighth of it for larger ones.
        device: "cpu" or "cuda".
        amp: bfloat16 where torch's autocast has it.
        repeats: counted runs of each side.
        memory: measure peak memory, by running each side once more.
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
    """One of the two ways."""

    run: Callable[[], object]
    detail: Callable[[], str] = str
    """Words on it, asked for after the runs."""
    parts: Mapping[str, list[float]] = {}
    """Seconds of each run's parts, filled by the runs."""


@dataclass(frozen=True)
class Case:
    """Two ways to the same end.

    Attributes:
        name: of the comparison.
        ours: makes the first side; what is made is not timed.
        other: makes the second one.
        scale: how much more the whole is than what the other side does.
        in_process: whether the work is done by this process, whose memory can be measured.
    """

    name: str
    ours: Callable[[], Side]
    other: Callable[[], Side]
    scale: float = 1.0
    in_process: bool = True


CASES: Registry[Callable[..., Case]] = Registry("benchmark case")
"""By name, functions of JSON values, which are kept with the results."""


@dataclass(frozen=True)
class Row:
    """The result of a comparison.

    Attributes:
        benchmark: to which the case belongs.
        case: its registered name.
        numbers: its arguments that are numbers.
        name: of the case.
        ours: median seconds.
        other: median seconds of the other side, scaled to the whole.
        ratio: median of other over ours, pair by pair.
        ours_spread: largest less smallest, over the median.
        other_spread: likewise.
        ours_memory: peak memory in MB, see :func:`~benchmarks.memory.peak_memory`. None: not measured.
        other_memory: likewise, not scaled.
        parts: median seconds of parts, [ours, other], where there are any.
        detail: what else is to be known.
        machine: see :func:`norton_det.runtime.timing.describe_machine`.
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
    """Read rows that were written as JSON; no file is no rows.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: expected rows of benchmark.py: {error}") from None


def compare(benchmark: str, case: str, arguments: Mapping[str, Any], settings: Settings) -> Row:
    """Make both sides of a case, run them in turn and return the figures.

    Raises:
        UsageError: an unknown case.
    """
    made = CASES[case](**arguments)
    sides = {"ours": made.ours(), "other": made.other()}
    seconds = time_alternating({name: side.run for name, side in sides.items()}, settings.repeats)
    wanted = settings.memory and made.in_process
    memory = {name: peak_memory(sides[name].run, settings.device) if wanted else None for name in SIDES}
    ours, other = seconds["ours"], seconds["other"]
    shared = [part for part in sides["ours"].parts if part in sides["other"].parts]
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
        {part: [median(sides[name].parts[part][-settings.repeats :]) for name in SIDES] for part in shared},
        "; ".join(text for name, side in sides.items() if (text := side.detail())),
        describe_machine(),
    )


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / median(seconds)
