"""The factor matrices of all filters of a layer."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor


class CPFactors(NamedTuple):
    """Factors of O filters: ``W[o, i, h, w] ~ sum_r a[o, i, r] b[o, h, r] c[o, w, r]``.

    Example:
        >>> factors = CPFactors.zeros(8, (16, 3, 3), rank=2)
        >>> factors.reconstruct().shape
        torch.Size([8, 16, 3, 3])
    """

    a: Tensor
    """Mode 1, of shape (O, I, R)."""
    b: Tensor
    """Mode 2, of shape (O, Kh, R)."""
    c: Tensor
    """Mode 3, of shape (O, Kw, R)."""

    @classmethod
    def zeros(cls, filters: int, shape: Sequence[int], rank: int) -> Self:
        """Return zero factors, float64, of filters of shape (I, Kh, Kw)."""
        return cls(*(torch.zeros(filters, size, rank, dtype=torch.float64) for size in shape))

    def reconstruct(self) -> Tensor:
        """Return the filters that the factors stand for, of shape (O, I, Kh, Kw)."""
        return torch.einsum("oir,ohr,owr->oihw", *self)


def balanced(factors: CPFactors) -> CPFactors:
    """Return factors of the same filters, terms in order of falling norm, the norm shared evenly by a, b and c.

    Args:
        factors: b and c with unit columns.
    """
    return CPFactors(*balance(*factors, factors.a.norm(dim=1)))


def balance(a: Tensor, b: Tensor, c: Tensor, size: Tensor, norm: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """Order terms by falling norm, and give a, b and c equal parts of it.

    Args:
        a: of shape (O, K, R): the mode-1 factors, or a matrix of which they are a linear function.
        b: unit columns, of shape (O, Kh, R).
        c: unit columns, of shape (O, Kw, R).
        size: norms of the columns of the mode-1 factors, of shape (O, R).
        norm: factor by which each filter is multiplied, of shape (O, 1, 1).
    """
    order = size.argsort(dim=1, descending=True, stable=True).unsqueeze(1)
    a, b, c = (f.gather(2, order.expand_as(f)) for f in (a, b, c))
    size = size.gather(1, order.squeeze(1)).unsqueeze(1)
    third = (size * norm).pow(1 / 3)
    return a * (third / size.clamp(min=1e-300)), b * third, c * third
