"""What a pruning criterion is given, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from norton_det.pruning.elimination import eliminate
from norton_det.registry import Registry


@dataclass(frozen=True)
class Filters:
    """The filters of one layer that writes a channel group.

    Attributes:
        weight: dense filters, of shape (O, ...).
        factors: each filter's factor matrix of each mode, of shapes (O, n_mode, R); None for a dense layer.
    """

    weight: Tensor
    factors: tuple[Tensor, ...] | None = None


Select = Callable[[Sequence[Filters], int, Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A way to choose the filters that stay.

    Attributes:
        select: ``(writers, keep, generator)`` -> kept channels, int64 of shape (keep,), ascending. ``writers`` are all
            the layers that write the group, each with the same number of filters; ``generator`` is for chance alone.
        needs_factors: it can judge decomposed layers only.
    """

    select: Select
    needs_factors: bool


CRITERIA: Registry[Criterion] = Registry("criterion")


def register_distance(name: str, distance: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
    """Register a pairwise criterion by its distance.

    Args:
        name: of the criterion.
        distance: factor matrices of shapes (O, n_mode, R) -> distances of shape (O, O), small where filters are alike.
            Those of all writers of a group are added up before the elimination.
    """

    def select(writers: Sequence[Filters], keep: int, generator: Generator) -> Tensor:
        total = sum(distance(writer.factors) for writer in writers if writer.factors is not None)
        assert isinstance(total, Tensor)
        return eliminate(total, keep)

    CRITERIA.register(name, Criterion(select, needs_factors=True))


def register_score(name: str, score: Callable[[Sequence[Filters], Generator], Tensor]) -> None:
    """Register a criterion by a score of each filter, of shape (O,); the highest stay, the first of equal ones."""

    def select(writers: Sequence[Filters], keep: int, generator: Generator) -> Tensor:
        order = score(writers, generator).argsort(descending=True, stable=True)
        return order[:keep].sort().values

    CRITERIA.register(name, Criterion(select, needs_factors=False))
