"""The smallest eigenvalues of many small symmetric matrices that lie side by side along the last dimension."""

import torch
from torch import Tensor

from norton_det.linalg.batched import contract

_PRECISION = 1e-15
_MAX_STEPS = 60  # where two of many roots are equal, a step leaves about 0.3 of the distance
_TINY = 1e-18


def smallest_eigenvalue(matrices: Tensor) -> Tensor:
    """Return the smallest eigenvalue of each matrix, to an absolute precision of 1e-12, mostly 1e-14.

    Laguerre's method for the characteristic polynomial of the tridiagonal form, from below: it never passes the
    smallest root where all roots are real, converges cubically, and takes one step where all are equal (Wilkinson, "The
    Algebraic Eigenvalue Problem", 1965, chapter 7).

    Args:
        matrices: positive semi-definite, no eigenvalue much above 1, float64 of shape (R, R, N), R at least 2;
            overwritten.

    Returns:
        Eigenvalues of shape (N,).

    Example:
        >>> matrices = torch.eye(2, dtype=torch.float64).unsqueeze(2).repeat(1, 1, 3)
        >>> smallest_eigenvalue(matrices * torch.tensor([0.25, 0.5, 1.0])).round(decimals=6)
        tensor([0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    size = len(matrices)
    diagonal, squared = _tridiagonal(matrices)
    value = torch.full_like(diagonal[0], -_PRECISION)
    result, active, before = value.clone(), torch.arange(len(value)), torch.full_like(value, _PRECISION)
    for _ in range(_MAX_STEPS):
        trace, trace_of_square = _traces_of_inverse([d - value for d in diagonal], squared)
        root = trace_of_square.mul_(size).addcmul_(trace, trace, value=-1).mul_(size - 1).clamp_(min=0).sqrt_()
        step = (size / trace.add_(root)).nan_to_num_(0.0, 0.0)  # no step at a root
        value += step
        error = step * (step / before).pow_(3)  # cubic convergence: estimated from the last two steps
        before = step.clamp_(min=_PRECISION)
        unfinished = error > _PRECISION
        count = int(unfinished.count_nonzero())
        if count < len(active) / 2:  # compaction costs about as much as a step
            result.scatter_(0, active, value)
            rest = unfinished.nonzero().flatten()
            active, value, before = (t.index_select(0, rest) for t in (active, value, before))
            diagonal, squared = ([t.index_select(0, rest) for t in ts] for ts in (diagonal, squared))
        if not count:
            break
    else:
        result.scatter_(0, active, value)
    return result


def _tridiagonal(matrices: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return diagonal and squared off-diagonal, lists of (N,), of similar tridiagonal matrices (Householder)."""
    diagonal, squared = [], []
    rest = matrices
    while len(rest) > 2:
        v = rest[1:, 0].clone()
        square = v.square().sum(0)
        diagonal.append(rest[0, 0])
        squared.append(square)
        v[0] += square.sqrt().copysign(v[0])
        scale = 2 / v.square().sum(0).clamp(min=1e-300)  # where v is zero there is nothing to reflect
        rest = rest[1:, 1:]
        w = contract(rest, v.unsqueeze(1)) * scale
        w -= 0.5 * scale * (w * v).sum(0) * v
        rest = rest.addcmul_(v.unsqueeze(1), w, value=-1).addcmul_(w.unsqueeze(1), v, value=-1)
    diagonal += list(rest.diagonal().unbind(-1))
    squared.append(rest[1, 0].square())
    return diagonal, squared


def _traces_of_inverse(diagonal: list[Tensor], squared: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the traces (N,) of T^-1 and T^-2 for positive definite tridiagonal T.

    The product of the pivots ``q_k = d_k - e_k^2 / q_(k-1)`` is det T, so the traces are the sums of -(log q_k)' and
    -(log q_k)'', the derivatives by a shift of the diagonal. No term of either recurrence is negative.
    """
    inverse = diagonal[0].clamp(min=_TINY).reciprocal_()
    first, second = inverse, inverse.square()
    trace, trace_of_square = first.clone(), second.clone()
    for d, e in zip(diagonal[1:], squared, strict=True):
        ratio = e * inverse
        inverse = (d - ratio).clamp_(min=_TINY).reciprocal_()
        growth = ratio.mul_(inverse)
        second.addcmul_(first, first).mul_(growth)
        first = torch.addcmul(inverse, growth, first)
        second.addcmul_(first, first)
        trace += first
        trace_of_square += second
    return trace, trace_of_square
