"""Measuring of time: alternating runs in one process, each with the accelerator's work included."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

import torch

_SLOWDOWN_LIMIT = 5.0  # generous: a first run also allocates memory and chooses algorithms


def time_alternating(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Measure functions in turn, A B A B ..., so that changes of the machine's speed affect all of them alike.

    Args:
        functions: the functions by name.
        repeats: number of measured runs of each function.
        warmup: number of runs of each function before those.

    Returns:
        The seconds of each measured run, by name.

    Example:
        >>> from norton_det.runtime.timing import time_alternating
        >>> seconds = time_alternating({"sum": lambda: sum(range(100)), "max": lambda: max(range(100))}, repeats=3)
        >>> {name: len(runs) for name, runs in seconds.items()}
        {'sum': 3, 'max': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(warmup + repeats):
        for name, function in functions.items():
            _synchronize()
            start = time.perf_counter()
            function()
            _synchronize()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_contenders(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each function, without repeating those that cannot be the fastest.

    Args:
        functions: the functions by name.
        repeats: number of measured runs of each function. A function whose first run takes more than five times as long
            as the shortest first run is not repeated; its result is that first run.
    """
    first = time_alternating(functions, 1, warmup=0)
    limit = _SLOWDOWN_LIMIT * min(seconds for (seconds,) in first.values())
    close = {name: function for name, function in functions.items() if first[name][0] <= limit}
    return {name: median(seconds) for name, seconds in {**first, **time_alternating(close, repeats, warmup=0)}.items()}


class Stopwatch:
    """Adds up the seconds of ``with`` blocks, with the accelerator's work included.

    Attributes:
        seconds: sum over all blocks.
        count: number of blocks.

    Example:
        >>> from norton_det.runtime.timing import Stopwatch
        >>> watch = Stopwatch()
        >>> with watch:
        ...     total = sum(range(1000))
        >>> watch.count
        1
    """

    def __init__(self) -> None:
        self.seconds, self.count, self._start = 0.0, 0, 0.0

    def __enter__(self) -> None:
        _synchronize()
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        _synchronize()
        self.seconds += time.perf_counter() - self._start
        self.count += 1


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_machine() -> str:
    """Return the names of the processor and GPU, the number of threads and torch's version, as one line."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    name = model or platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}{gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    yield from path.read_text().splitlines() if path.is_file() else []
