"""The division of a data set into batches, and into training and held-out images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from norton_det.errors import UsageError
from norton_det.runtime.seeds import derive_seed

T = TypeVar("T")


@dataclass(frozen=True)
class Batching:
    """The division of a data set into batches, for one of several processes.

    A training batch is the union of the batches of all processes: N processes with B images each see the same batches
    as one process with N * B images. Everything depends on the seed and the position alone, so training can be resumed
    at any batch.

    Attributes:
        batch_size: number of images in a batch of each process.
        seed: seed of order and augmentation.
        rank: rank of this process.
        world_size: number of processes.

    Example:
        >>> from norton_det.data import Batching
        >>> batching = Batching(batch_size=4)
        >>> batching.steps(10)
        2
        >>> [len(batch) for batch in batching.evaluation(10)]
        [4, 4, 2]
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def steps(self, count: int) -> int:
        """Return the number of batches in an epoch of ``count`` images. An incomplete last batch is left out.

        Raises:
            UsageError: there are fewer images than in one batch.
        """
        steps = count // (self.batch_size * self.world_size)
        if steps < 1:
            raise UsageError(
                f"batch_size is {self.batch_size} in {self.world_size} processes; "
                f"expected at most {count} in all, the number of training images"
            )
        return steps

    def generator(self, epoch: int) -> torch.Generator:
        """Return the generator of all random numbers in the data of an epoch. It is the same in all processes."""
        return torch.Generator().manual_seed(derive_seed(self.seed, epoch))

    def training(self, count: int, start: int = 0) -> list[Tensor]:
        """Return the positions (batch_size,) of this process in the order of an epoch, for each batch from ``start``.

        Raises:
            UsageError: there are fewer images than in one batch.
        """
        positions = torch.arange(self.steps(count) * self.batch_size * self.world_size)
        return list(positions.view(-1, self.world_size, self.batch_size)[start:, self.rank])

    def evaluation(self, count: int) -> list[Tensor]:
        """Return the positions of this process for each batch. All processes together see every image once.

        With more processes than images, some have no batch.
        """
        positions = torch.arange(count)[self.rank :: self.world_size]
        return list(positions.split(self.batch_size)) if len(positions) else []


class Batches(Generic[T]):
    """Batches that are made on demand, with a length.

    Args:
        make: makes a batch from positions (B,).
        parts: the positions of each batch.
    """

    def __init__(self, make: Callable[[Tensor], T], parts: Sequence[Tensor]) -> None:
        self.make, self.parts = make, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[T]:
        return map(self.make, self.parts)


def hold_out(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Split the indices of ``count`` training images into those for training and ``size`` that are held out.

    The split is always the same, whatever the seed of the training, so that all runs are validated on the same images.

    Returns:
        The indices for training, (count - size,), and the held-out ones, (size,): int64 in ascending order.

    Raises:
        UsageError: one of the two parts would be empty.

    Example:
        >>> from norton_det.data.batching import hold_out
        >>> train, held_out = hold_out(10, 2)
        >>> len(train), len(held_out)
        (8, 2)
    """
    if not 0 < size < count:
        raise UsageError(f"holdout is {size}; expected between 1 and {count - 1}, below the number of training images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[size:].sort().values, order[:size].sort().values
