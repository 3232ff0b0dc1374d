"""The interface of a pruning criterion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
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
    """A rule that chooses the filters to keep.

    Attributes:
        select: ``(writers, keep, generator)`` -> kept channels, int64 of shape (keep,), ascending. ``writers`` are all
            the layers that write the group, each with the same number of filters; ``generator`` is for random choices.
        needs_factors: it applies to decomposed layers only.
        tells_apart: factors -> whether it can tell the filters apart by them: it cannot by the angles of subspaces that
            fill the whole space.

    Example:
        >>> import torch
        >>> import norton_det.pruning  # registers the criteria
        >>> weight = torch.tensor([[3.0], [1.0], [2.0]])
        >>> CRITERIA["norm"].select([Filters(weight)], 2, Generator())
        tensor([0, 2])
    """

    select: Select
    needs_factors: bool
    tells_apart: Callable[[tuple[Tensor, ...]], bool] = lambda factors: True

    def applies(self, writers: Sequence[Filters]) -> bool:
        """Tell whether it says something about these layers; otherwise the norm decides."""
        factors = [writer.factors for writer in writers if writer.factors is not None]
        return not self.needs_factors or (len(factors) == len(writers) and any(map(self.tells_apart, factors)))


CRITERIA: Registry[Criterion] = Registry("criterion")
"""By name."""


def norms(writers: Sequence[Filters]) -> Tensor:
    """Return the L2 norm of each channel's filters in all writers together, float64 of shape (O,).

    Example:
        >>> import torch
        >>> norms([Filters(torch.tensor([[3.0], [0.0]])), Filters(torch.tensor([[4.0], [1.0]]))])
        tensor([5., 1.], dtype=torch.float64)
    """
    squares = [writer.weight.detach().to("cpu", torch.float64).flatten(1).square().sum(1) for writer in writers]
    return torch.stack(squares).sum(0).sqrt()


def register_distance(
    name: str,
    distance: Callable[[tuple[Tensor, ...]], Tensor],
    *,
    tells_apart: Callable[[tuple[Tensor, ...]], bool] = lambda factors: True,
) -> None:
    """Register a pairwise criterion by its distance.

    Args:
        name: of the criterion.
        distance: factor matrices of shapes (O, n_mode, R) -> distances of shape (O, O), small between similar filters.
            The distances of all writers of a group are added before the elimination, where of equal ones the smaller
            filter goes first.
        tells_apart: see :class:`Criterion`.
    """

    def select(writers: Sequence[Filters], keep: int, generator: Generator) -> Tensor:
        total = sum(distance(writer.factors) for writer in writers if writer.factors is not None)
        assert isinstance(total, Tensor)
        return eliminate(total, keep, norms(writers))

    CRITERIA.register(name, Criterion(select, needs_factors=True, tells_apart=tells_apart))


def register_score(name: str, score: Callable[[Sequence[Filters], Generator], Tensor]) -> None:
    """Register a criterion by a score of each filter, of shape (O,); the highest are kept, the first of equal ones."""

    def select(writers: Sequence[Filters], keep: int, generator: Generator) -> Tensor:
        order = score(writers, generator).argsort(descending=True, stable=True)
        return order[:keep].sort().values

    CRITERIA.register(name, Criterion(select, needs_factors=False))
