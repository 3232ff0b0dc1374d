"""Timing that can be compared: the accelerator's work is waited for, candidates run in turn, in one process."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

import torch

_HOPELESS = 5.0  # a first run has to prepare things


def time_alternating(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time functions in turn, A B A B ..., so that a drift of the machine's speed meets all of them.

    Args:
        functions: what to time, by name.
        repeats: counted runs of each.
        warmup: runs of each before those.

    Returns:
        Seconds of each counted run, by name.
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
    """Return the median seconds of each function: what cannot become the fastest is not run often.

    Args:
        functions: what to time, by name.
        repeats: counted runs of each; one whose first run takes five times as long as the shortest has no other.
    """
    first = time_alternating(functions, 1, warmup=0)
    limit = _HOPELESS * min(seconds for (seconds,) in first.values())
    close = {name: function for name, function in functions.items() if first[name][0] <= limit}
    return {name: median(seconds) for name, seconds in {**first, **time_alternating(close, repeats, warmup=0)}.items()}


class Stopwatch:
    """Sums the seconds of the blocks ``with watch:``, the accelerator's work included.

    Attributes:
        seconds: in all blocks.
        count: number of blocks.
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
    """Return the processor or GPU, the number of threads and torch's version."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    name = model or platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}{gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    yield from path.read_text().splitlines() if path.is_file() else []
