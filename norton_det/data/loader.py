"""Loading of items in several processes, with results that do not depend on the processes."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from norton_det.data.batching import Batches
from norton_det.errors import DataError, UsageError
from norton_det.runtime.signals import SIGNALS

T_co = TypeVar("T_co", covariant=True)

PATIENCE = "NORTON_DET_READ_SECONDS"
"""Environment variable: seconds without a batch after which the process that reads it is said to hang; 0: never."""
_PATIENCE = 600.0


class Items(Protocol[T_co]):
    """Indexed items. Reading an item may use torch's global random generator.

    Items may have ``name_of(index)``, the name of an item in messages: its file.
    """

    def __getitem__(self, index: int, /) -> T_co: ...


def load(
    items: Items[Any],
    order: Tensor,
    seeds: Tensor | None,
    parts: Sequence[Tensor],
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return batches of items. The random numbers of an item do not depend on the process that reads it, nor on when.

    The processes that read leave SIGTERM, SIGINT and SIGUSR1 to this one, which needs its data until the end of the
    batch, and end with it. One that is killed, or whose batch does not come in :data:`PATIENCE`, ends the iteration
    with a DataError that names the item.

    Args:
        items: the items.
        order: index of the item at each position, int64 (N,).
        seeds: seed of the random numbers at each position, int64 (N,); None: nothing is random.
        parts: the positions of each batch.
        workers: number of processes that read, at most one for each batch; 0: this process reads.
        collate: makes a batch from a list of items; None: tensors are stacked.

    Raises:
        UsageError: the environment variable is no number of seconds.
    """
    workers = min(workers, len(parts))  # torch ends one that never got a batch with a traceback, if another fails
    seeds = torch.zeros(len(order), dtype=torch.int64) if seeds is None else seeds
    keys = Batches(lambda part: list(zip(order[part].tolist(), seeds[part].tolist(), strict=True)), parts)
    readers = _Readers(workers, _patience())
    return _Loader(
        _Seeded(items, readers),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_initialized(),  # not for a training on the CPU
        worker_init_fn=readers.begin if workers else None,
        generator=torch.Generator(),  # each item has its seed: a checkpoint's random state is not to depend on loading
    )


def _patience() -> float:
    text = os.environ.get(PATIENCE, str(_PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise UsageError(f"{PATIENCE} is {text!r}; expected seconds, or 0 to wait for ever")
    return seconds


class _Readers:
    """What the processes of a loader read now, in memory that they share.

    Args:
        count: number of processes.
        patience: seconds without a batch after which one is said to hang; 0: none is.
    """

    def __init__(self, count: int, patience: float) -> None:
        self.patience = patience
        self.items = multiprocessing.RawArray("q", [-1] * count)
        self.pids = multiprocessing.RawArray("q", count)

    def begin(self, number: int) -> None:
        """Begin in a process that reads."""
        self.pids[number] = os.getpid()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Note what this process reads within the block."""
        info = get_worker_info()
        if info is not None:
            self.items[info.id] = index
        yield  # not if it fails: the process goes on, and the error says what was read
        if info is not None:
            self.items[info.id] = -1


class _Seeded(Dataset[Any]):
    """Items by (index, seed)."""

    def __init__(self, items: Items[Any], readers: _Readers) -> None:
        self.items, self.readers = items, readers

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with self.readers.at(index), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.items[index]

    def name_of(self, index: int) -> str:
        """Return the name of an item in messages."""
        named = getattr(self.items, "name_of", None)
        return f"item {index}" if named is None else str(named(index))


class _Loader(DataLoader[Any]):
    """A DataLoader that names what a process read which is killed or hangs, and whose processes end with this one."""

    dataset: _Seeded

    def __iter__(self) -> Any:
        return _watched(self, super().__iter__) if self.num_workers else super().__iter__()


def _watched(loader: _Loader, start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield the batches of a loader's processes.

    Raises:
        DataError: a process was killed or does not give its batch.
    """
    others = set(multiprocessing.active_children())
    with _without_signals():
        batches = start()
    processes = {process.pid: process for process in set(multiprocessing.active_children()) - others}
    _end_at_exit(set(processes.values()))
    watch = _Watch(loader.dataset.readers, [*processes.values()])
    number = -1
    try:
        while True:
            number += 1
            with watch.waits_for(number):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError:
                    _raise_dead(loader.dataset, watch, processes)
                    raise
            yield batch
    finally:
        watch.end()


def _raise_dead(data: _Seeded, watch: "_Watch", processes: dict[int | None, BaseProcess]) -> None:
    """Raise DataError if a process that reads has been killed."""
    readers = data.readers
    for number, pid in enumerate(readers.pids):
        process = processes.get(pid)
        if process is None or not (code := process.exitcode):
            continue
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"gave no batch in {readers.patience:g} s ({PATIENCE})" if number == watch.killed else end
        index = readers.items[number]
        place = data.name_of(index) if index >= 0 else "between two items"
        raise DataError(f"{place}: the process that reads {what}")


class _Watch:
    """Kills the process whose batch does not come in time."""

    def __init__(self, readers: _Readers, processes: Sequence[BaseProcess]) -> None:
        self.readers, self.processes, self.killed = readers, processes, -1
        self.number, self.since = 0, 0.0  # 0: nothing is waited for
        self.ended = threading.Event()
        if readers.patience:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """End the watch."""
        self.ended.set()

    @contextmanager
    def waits_for(self, number: int) -> Iterator[None]:
        """Watch over the wait for a batch, which is the block."""
        self.number, self.since = number, time.monotonic()
        try:
            yield
        finally:
            self.since = 0.0

    def _watch(self) -> None:
        patience = self.readers.patience
        while self.killed < 0 and not self.ended.wait(min(1.0, patience / 4)):
            since = self.since
            lacks = since and time.monotonic() - since > patience
            if lacks and not any(process.exitcode for process in self.processes):  # that would be why
                self.killed = self.number % len(self.readers.pids)  # they take turns
                pid = self.readers.pids[self.killed]
                for process in self.processes:
                    if pid in (0, process.pid):  # 0: it has not even begun
                        process.kill()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Start processes that signals never reach, and that tell nothing of their end but their exit code.

    What they begin with is what this one has: until they ignore the signals, its handlers would run in them. Of a
    process that is killed torch would raise an error wherever this one is just then, in the middle of an update.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    child = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if child is None else child)


_READERS: WeakSet[BaseProcess] = WeakSet()


def _end_at_exit(readers: set[BaseProcess]) -> None:
    """Kill processes at the exit of this one, before multiprocessing sends them SIGTERM and waits for them for ever."""
    if readers:
        _READERS.update(readers)
        atexit.unregister(_kill_readers)
        atexit.register(_kill_readers)  # what is registered last runs first


def _kill_readers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports killed readers as an error
    for reader in _READERS:
        reader.kill()
