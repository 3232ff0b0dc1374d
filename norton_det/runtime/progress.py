"""What is told while a loop runs: log lines in the form of torchvision's reference scripts, bars, TensorBoard."""

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
    """A figure that is followed: shown as the median of the last 20 values and the mean of all."""

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
        """Mean of all values."""
        return self.total / max(self.count, 1)

    def __str__(self) -> str:
        return f"{median(self.recent):.4f} ({self.mean:.4f})" if self.recent else "-"


class ProgressLog:
    """Follows a loop: a log line every ``print_freq`` iterations, and a progress bar on a terminal.

    Args:
        header: how a line begins ("Epoch: [0]").
        print_freq: iterations from line to line.
    """

    def __init__(self, header: str, print_freq: int) -> None:
        self.header, self.print_freq = header, print_freq
        self.meters: dict[str, Meter] = {}
        self.lr: float | None = None  # told as it is, where there is one

    def update(self, **values: float) -> None:
        """Add values to the meters of these names."""
        for name, value in values.items():
            self.meters.setdefault(name, Meter()).update(value)

    def follow(self, batches: Iterable[T], start: int = 0) -> Iterator[T]:
        """Yield the batches, timing the loop's body (``time``) and the wait for data (``data``).

        Args:
            batches: what is looped over.
            start: number of the first batch, where a loop goes on.
        """
        total = start + len(batches) if isinstance(batches, Sized) else 0
        timer, data = Meter(), Meter()
        begin = end = time.perf_counter()
        hidden = None if is_main() else True  # None: shown on a terminal
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
    """Return a function that adds the figures of an epoch, given with its number as ``epoch``, to TensorBoard's log.

    Args:
        folder: where the log is written.
        first: number of the first epoch; what an older log has from there on is dropped.

    Raises:
        UsageError: the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard: package tensorboard is missing; pip install norton-det[tensorboard]") from None
    writer = SummaryWriter(str(folder), purge_step=first)

    def add(figures: Mapping[str, float | None]) -> None:
        for name, value in figures.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, figures["epoch"])
        writer.flush()

    return add


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
