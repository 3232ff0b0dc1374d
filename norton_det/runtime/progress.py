"""Progress of a loop: log lines in the format of torchvision's reference scripts, progress bars."""

import datetime
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from statistics import median
from typing import TypeVar

import torch
from tqdm import tqdm

from norton_det.runtime.distributed import is_main

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Meter:
    """The values of a metric, shown as the median of the last 20 and the mean of all."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=20)
        self.first = 0.0
        self.total = 0.0
        self.count = 0

    def update(self, value: float) -> None:
        """Add a value."""
        self.recent.append(value)
        self.first = self.first if self.count else value
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        """The mean of all values; 0 without a value."""
        return self.total / max(self.count, 1)

    @property
    def mean_of_later(self) -> float:
        """The mean of all values but the first; 0 without a second one."""
        return (self.total - self.first) / max(self.count - 1, 1)

    def __str__(self) -> str:
        return f"{median(self.recent):.4f} ({self.mean:.4f})" if self.recent else "-"


class ProgressLog:
    """Log of a loop: a line every ``print_freq`` iterations, and a progress bar on a terminal.

    Args:
        header: beginning of each line ("Epoch: [0]").
        print_freq: number of iterations between log lines.
        later: seconds that the whole run takes after this loop, of the seconds of an iteration. The first iteration, in
            which processes start, is no measure of that.

    Example:
        >>> from norton_det.runtime.progress import ProgressLog
        >>> log = ProgressLog("Test:", print_freq=10)
        >>> for batch in log.follow([1, 2, 3]):
        ...     log.update(loss=0.5 * batch)
        >>> print(log.meters["loss"])
        1.0000 (1.0000)
    """

    def __init__(self, header: str, print_freq: int, later: Callable[[float], float] | None = None) -> None:
        self.header, self.print_freq, self.later = header, print_freq, later
        self.meters: dict[str, Meter] = {}
        self.lr: float | None = None  # shown without a median and a mean; None: not shown

    def update(self, **values: float) -> None:
        """Add a value to the meter of each name."""
        for name, value in values.items():
            self.meters.setdefault(name, Meter()).update(value)

    def follow(self, batches: Iterable[T], start: int = 0) -> Iterator[T]:
        """Yield the batches and measure the seconds of the loop's body (``time``) and of loading (``data``).

        Args:
            batches: the batches.
            start: index of the first batch, if a loop is resumed.
        """
        total = start + len(batches) if isinstance(batches, Sized) else 0
        timer, data = Meter(), Meter()
        begin = end = time.perf_counter()
        hidden = None if is_main() else True  # None: tqdm shows the bar on a terminal only
        bar = tqdm(batches, desc=self.header, disable=hidden, leave=False, initial=start, total=total or None)
        for i, batch in enumerate(bar, start):
            data.update(time.perf_counter() - end)
            yield batch
            timer.update(time.perf_counter() - end)
            end = time.perf_counter()
            if i % self.print_freq == 0 or i == total - 1:
                self._log(i, total, timer, data)
        seconds = time.perf_counter() - begin
        logger.info("%s Total time: %s (%.4f s / it)", self.header, clock(seconds), seconds / max(timer.count, 1))

    def _log(self, i: int, total: int, timer: Meter, data: Meter) -> None:
        pace = timer.mean if timer.count == 1 else timer.mean_of_later
        left = pace * (total - i - 1)
        parts = [f"{self.header}  [{i:{len(str(total))}d}/{total}]", f"eta: {clock(left)}"]
        if self.later is not None and timer.count > 1:
            parts.append(f"run: {clock(left + self.later(pace))}")
        if self.lr is not None:
            parts.append(f"lr: {self.lr:.6f}")
        parts += [f"{name}: {meter}" for name, meter in {**self.meters, "time": timer, "data": data}.items()]
        if torch.cuda.is_available():
            parts.append(f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        logger.info("  ".join(parts))


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    Example:
        >>> from norton_det.runtime.progress import clock
        >>> clock(3661.5)
        '1:01:01'
    """
    return str(datetime.timedelta(seconds=int(seconds)))
