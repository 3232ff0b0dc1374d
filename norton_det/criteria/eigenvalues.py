"""The smallest eigenvalues of many small symmetric matrices that lie side by side along the last dimension."""

import torch
from torch import Tensor

from norton_det.vectors import contract

_PRECISION = 1e-14
_MOST_STEPS = 60  # where two of many roots are equal, a step leaves about 0.3 of the distance
_TINY = 1e-18


def smallest_eigenvalue(matrices: Tensor) -> Tensor:
    """Return the smallest eigenvalue of each matrix, to an absolute precision of about 1e-14.

    Laguerre's method for the characteristic polynomial of the tridiagonal form, from below: it never passes the
    smallest root where all roots are real, converges cubically, and takes one step where all are equal (Wilkinson, "The
    Algebraic Eigenvalue Problem", 1965, chapter 7).

    Args:
        matrices: positive semi-definite, no eigenvalue much above 1, float64 of shape (R, R, N); used up.

    Returns:
        Of shape (N,).
    """
    size = len(matrices)
    diagonal, squared = _tridiagonal(matrices)
    result = diagonal.new_full(diagonal.shape[1:], -_PRECISION)
    value, active = result.clone(), torch.arange(len(result))
    for _ in range(_MOST_STEPS):
        trace, trace_of_square = _traces_of_inverse(diagonal - value, squared)
        root = ((size - 1) * (size * trace_of_square - trace.square())).clamp(min=0).sqrt()
        step = (size / (trace + root)).nan_to_num(0.0, 0.0)  # no step at a root
        value += step
        going = (step > _PRECISION).nonzero().flatten()
        if len(going) < len(active) / 2:  # to take the others out costs about as much as a step
            result[active] = value
            active, value, diagonal, squared = (t[..., going] for t in (active, value, diagonal, squared))
        if not len(going):
            break
    else:
        result[active] = value
    return result


def _tridiagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return diagonal (R, N) and squared off-diagonal (R - 1, N) of similar tridiagonal matrices (Householder's)."""
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
    return torch.stack(diagonal), torch.stack(squared)


def _traces_of_inverse(diagonal: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
    """Return the traces (N,) of T^-1 and T^-2 for positive definite tridiagonal T.

    With ``q_k = d_k - e_k^2 / q_(k-1)``, det T is the product of the q. Its first and second logarithmic derivatives by
    a shift of the diagonal are the traces; first and second are q' / q and q'' / q.
    """
    pivot = diagonal[0].clamp(min=_TINY)
    first = -1 / pivot
    second = torch.zeros_like(first)
    trace, trace_of_square = -first, first.square()
    for d, e in zip(diagonal[1:], squared, strict=True):
        ratio = e / pivot
        pivot = (d - ratio).clamp(min=_TINY)
        first, second = (ratio * first - 1) / pivot, ratio * (second - 2 * first.square()) / pivot
        trace = trace - first
        trace_of_square = trace_of_square + first.square() - second
    return trace, trace_of_square
