"""Progress of a loop: log lines in the format of torchvision's reference scripts, progress bars, TensorBoard."""

import datetime
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from tqdm import tqdm

from norton_det.errors import UsageError
from norton_det.runtime.distributed import is_main

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Meter:
    """The values of a metric, shown as the median of the last 20 and the mean of all."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=20)
        self.total = 0.0
        self.count = 0

    def update(self, value: float) -> None:
        """Add a value."""
        self.recent.append(value)
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        """The mean of all values; 0 without a value."""
        return self.total / max(self.count, 1)

    def __str__(self) -> str:
        return f"{median(self.recent):.4f} ({self.mean:.4f})" if self.recent else "-"


class ProgressLog:
    """Log of a loop: a line every ``print_freq`` iterations, and a progress bar on a terminal.

    Args:
        header: beginning of each line ("Epoch: [0]").
        print_freq: number of iterations between log lines.

    Example:
        >>> from norton_det.runtime.progress import ProgressLog
        >>> log = ProgressLog("Test:", print_freq=10)
        >>> for batch in log.follow([1, 2, 3]):
        ...     log.update(loss=0.5 * batch)
        >>> print(log.meters["loss"])
        1.0000 (1.0000)
    """

    def __init__(self, header: str, print_freq: int) -> None:
        self.header, self.print_freq = header, print_freq
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
        logger.info("%s Total time: %s (%.4f s / it)", self.header, _clock(seconds), seconds / max(timer.count, 1))

    def _log(self, i: int, total: int, timer: Meter, data: Meter) -> None:
        eta = _clock(timer.mean * (total - i - 1))
        parts = [f"{self.header}  [{i:{len(str(total))}d}/{total}]", f"eta: {eta}"]
        if self.lr is not None:
            parts.append(f"lr: {self.lr:.6f}")
        parts += [f"{name}: {meter}" for name, meter in {**self.meters, "time": timer, "data": data}.items()]
        if torch.cuda.is_available():
            parts.append(f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        logger.info("  ".join(parts))


def tensorboard_log(folder: str | Path, first: int) -> Callable[[Mapping[str, float | None]], None]:
    """Return a function that writes the metrics of an epoch to TensorBoard's log.

    Its argument has the number of the epoch under ``epoch``, and metrics by name; metrics that are None are left out.

    Args:
        folder: the folder of the log.
        first: number of the first epoch; entries of an older log from this epoch on are discarded.

    Raises:
        UsageError: the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "tensorboard is not installed; --tensorboard needs it: pip install norton-det[tensorboard]"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=first)

    def add(metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, metrics["epoch"])
        writer.flush()

    return add


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
