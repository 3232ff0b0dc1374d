"""Which images make up a batch, and which are held out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from norton_det.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Batching:
    """How the images of a set come in batches, in one process of several.

    A batch of training is made of the processes' parts, so that N processes with B images each see the batches of one
    process with N * B. Everything follows from the seed and the position: training can go on from any batch.

    Attributes:
        batch_size: images a batch in each process.
        seed: of order and augmentation.
        rank: number of this process.
        world_size: number of processes.
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def steps(self, count: int) -> int:
        """Return the number of batches in an epoch of ``count`` images; what would not fill a batch is left out.

        Raises:
            UsageError: there is not one.
        """
        steps = count // (self.batch_size * self.world_size)
        if steps < 1:
            raise UsageError(
                f"batch_size is {self.batch_size} in {self.world_size} processes; "
                f"expected at most {count} in all, the number of training images"
            )
        return steps

    def generator(self, epoch: int) -> torch.Generator:
        """Return the source of everything random in the data of an epoch, the same in all processes."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def training(self, count: int, start: int = 0) -> list[Tensor]:
        """Return this process's positions (batch_size,) in the order of an epoch, for each batch from ``start`` on."""
        whole = torch.arange(self.steps(count) * self.batch_size * self.world_size)
        parts = whole.view(-1, self.world_size, self.batch_size)[start:, self.rank]
        return list(parts)

    def evaluation(self, count: int) -> list[Tensor]:
        """Return this process's positions, batch by batch; the processes together have every image once."""
        return list(torch.arange(self.rank, count, self.world_size).split(self.batch_size))


class Batches(Generic[T]):
    """Batches that are made when their turn comes, and how many there are.

    Args:
        make: positions (N,) -> batch.
        parts: the positions of each batch.
    """

    def __init__(self, make: Callable[[Tensor], T], parts: Sequence[Tensor]) -> None:
        self.make, self.parts = make, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[T]:
        return map(self.make, self.parts)


def hold_out(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Split the numbers of ``count`` training images into those to train on and ``size`` that are held out.

    They are the same images always, whatever the seed of a training, so that everything is tuned on these alone.

    Returns:
        Two int64 tensors in ascending order.

    Raises:
        UsageError: nothing would be left, or nothing held out.
    """
    if not 0 < size < count:
        raise UsageError(f"holdout is {size}; expected between 1 and {count - 1}, below the number of training images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[size:].sort().values, order[:size].sort().values
