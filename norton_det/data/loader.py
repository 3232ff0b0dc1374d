"""Loading of items in several processes, with results that do not depend on the processes."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from norton_det.data.batching import Batches

T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """Indexed items. Reading an item may use torch's global random generator."""

    def __getitem__(self, index: int, /) -> T_co: ...


def load(
    items: Items[Any],
    order: Tensor,
    seeds: Tensor,
    parts: Sequence[Tensor],
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return batches of items. The random numbers of an item do not depend on the process that reads it, nor on when.

    The processes that read leave SIGTERM to this one, which needs its data until the end of the batch, and end with it.

    Args:
        items: the items.
        order: index of the item at each position, int64 (N,).
        seeds: seed of the random numbers at each position, int64 (N,).
        parts: the positions of each batch.
        workers: number of processes that read; 0: this process reads.
        collate: makes a batch from a list of items; None: tensors are stacked.
    """
    keys = Batches(lambda part: list(zip(order[part].tolist(), seeds[part].tolist(), strict=True)), parts)
    return _Loader(
        _Seeded(items),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_sigterm if workers else None,
    )


class _Seeded(Dataset[Any]):
    """Items by (index, seed)."""

    def __init__(self, items: Items[Any]) -> None:
        self.items = items

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.items[index]


class _Loader(DataLoader[Any]):
    """A DataLoader whose processes end with this one, although they ignore SIGTERM."""

    def __iter__(self) -> Any:
        others = set(multiprocessing.active_children())
        batches = super().__iter__()
        _end_at_exit(set(multiprocessing.active_children()) - others)
        return batches


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


def _ignore_sigterm(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
