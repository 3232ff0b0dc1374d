"""Reading items while they are used, in several processes, always to the same result."""

import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from norton_det.data.batching import Batches

T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What is read: an item has a number; reading it may draw on torch's random numbers."""

    def __getitem__(self, number: int, /) -> T_co: ...


def load(
    items: Items[Any],
    order: Tensor,
    seeds: Tensor,
    parts: Sequence[Tensor],
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return batches of items; what is random in an item does not depend on which process reads it, nor when.

    Args:
        items: what is read.
        order: number of the item at each position, int64 (N,).
        seeds: of each position, int64 (N,).
        parts: the positions of each batch.
        workers: processes that read; 0: this one.
        collate: makes a batch of a list of items; None: stacks tensors.
    """
    keys = Batches(lambda part: list(zip(order[part].tolist(), seeds[part].tolist(), strict=True)), parts)
    return DataLoader(
        _Seeded(items),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_stay if workers else None,
    )


class _Seeded(Dataset[Any]):
    """Items by number and seed."""

    def __init__(self, items: Items[Any]) -> None:
        self.items = items

    def __getitem__(self, key: tuple[int, int]) -> Any:
        number, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.items[number]


def _stay(worker: int) -> None:
    """Leave SIGTERM to the training process, which finishes its batch before it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
