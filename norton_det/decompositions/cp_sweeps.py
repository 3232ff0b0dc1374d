"""Alternating least squares for many small CP problems at once.

The least squares depend on a filter X (I, Kh * Kw) only through ``G = X^T X``: with k the Khatri-Rao product of b and
c, the best a are ``X k S^-1``, S = k^T k, and are never formed. The problems lie side by side along the last dimension,
so that each step is a few vector instructions on all of them.

Sweeps are extrapolated with Nesterov's weights, which restart where the error rises (Mitchell, Ye and De Sterck,
"Nesterov acceleration of alternating least squares for canonical tensor decomposition", arXiv:1810.05846).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.linalg.batched import contract

_CHECK_EVERY = 10
_SOLVE_RIDGE = 1e-12  # of the mean diagonal: keeps the pivots of collinear terms positive
_TINY = 1e-300


class Fit(NamedTuple):
    """The fit with the best a for given b and c: ``a = X inverse``."""

    inverse: Tensor
    """k S^-1, the pseudo-inverse of k^T, of shape (Kh * Kw, R, N)."""
    projection: Tensor
    """X^T a, of shape (Kh * Kw, R, N)."""
    gram_a: Tensor
    """a^T a, of shape (R, R, N)."""
    objective: Tensor
    """``|X - a k^T|^2 + ridge |a|^2``, of shape (N,)."""
    error: Tensor
    """|X - a k^T|^2, of shape (N,)."""
    size_a: Tensor
    """|a|^2, of shape (N,)."""


def fit_a(gram: Tensor, b: Tensor, c: Tensor, ridge: float) -> Fit:
    """Return the fit with the best a for b and c.

    Args:
        gram: X^T X of each problem, of shape (Kh * Kw, Kh * Kw, N).
        b: unit columns, of shape (Kh, R, N).
        c: unit columns, of shape (Kw, R, N).
        ridge: weight of |a|^2.
    """
    kernels = (b.unsqueeze(1) * c).flatten(0, 1)  # Khatri-Rao
    inner = _inner(b) * _inner(c)
    inner.diagonal().add_(ridge)
    inverse = _solve(inner, kernels)
    projection = contract(gram.unsqueeze(2), inverse.unsqueeze(1))
    objective = gram.diagonal().sum(-1) - (kernels * projection).sum((0, 1))
    gram_a = contract(inverse.unsqueeze(2), projection.unsqueeze(1))
    size_a = gram_a.diagonal().sum(-1)
    return Fit(inverse, projection, gram_a, objective, objective - ridge * size_a, size_a)


def alternate(
    gram: Tensor, b: Tensor, c: Tensor, ridge: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Improve b and c until every problem has converged; converged problems leave the batch.

    Args:
        gram: as for :func:`fit_a`.
        b: likewise.
        c: likewise.
        ridge: likewise.
        max_iterations: limit of sweeps.
        tolerance: a problem is done when 10 sweeps lower its objective by less than this fraction of it.
    """
    done_b, done_c = b.clone(), c.clone()
    active = torch.arange(gram.shape[-1])
    start_b, start_c = b, c  # where a sweep starts: the last result, extrapolated
    last = best = before = gram.new_full(active.shape, math.inf)
    age = gram.new_zeros(active.shape)  # sweeps since the error rose
    for iteration in range(1, max_iterations + 1):
        fit = fit_a(gram, start_b, start_c, ridge)
        age = torch.where(fit.objective > last, 0.0, age + 1)
        last, best = fit.objective, torch.minimum(best, fit.objective)
        old_b, old_c = b, c
        b = unit(_solve_mode(fit, start_c, 1), start_b)
        c = unit(_solve_mode(fit, b, 0), start_c)
        weight = age / (age + 3)
        start_b, start_c = unit(b + weight * (b - old_b), b), unit(c + weight * (c - old_c), c)
        if iteration % _CHECK_EVERY == 0 or iteration == max_iterations:
            done_b[..., active], done_c[..., active] = b, c
            unfinished = (before - best > tolerance * best).nonzero().flatten()
            if not len(unfinished):
                break
            before = best
            state = (active, gram, b, c, start_b, start_c, last, best, before, age)
            active, gram, b, c, start_b, start_c, last, best, before, age = (t[..., unfinished] for t in state)
    return done_b, done_c


def _solve_mode(fit: Fit, other: Tensor, dim: int) -> Tensor:
    """Return the best factors (K, R, N) of one of the modes b and c, given those of the other, along ``dim``."""
    projection = fit.projection.unflatten(0, (len(other), -1) if dim == 0 else (-1, len(other)))
    return _solve(fit.gram_a * _inner(other), (projection * other.unsqueeze(1 - dim)).sum(dim))


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return ``right @ inv(matrix)`` of each problem, by elimination: ``matrix`` needs no pivots.

    Args:
        matrix: positive semi-definite, of shape (R, R, N).
        right: of shape (K, R, N).
    """
    work = torch.cat([matrix, right.transpose(0, 1)], 1)
    rank = len(matrix)
    ridge = _SOLVE_RIDGE * matrix.diagonal().mean(-1) + _TINY
    work.diagonal().add_(ridge.unsqueeze(-1))
    for k in range(rank):
        row = work[k, k + 1 :] / torch.maximum(work[k, k], ridge)
        work[:, k + 1 :].addcmul_(work[:, k].unsqueeze(1), row, value=-1)
        work[k, k + 1 :] = row
    return work[:, rank:].transpose(0, 1)


def unit(factor: Tensor, fallback: Tensor | None = None) -> Tensor:
    """Scale the columns of (K, R, N) to norm 1; replace a zero column (a vanished term) by that of ``fallback``."""
    norm = factor.square().sum(0).sqrt()
    scaled = factor / norm.clamp(min=_TINY)
    return scaled if fallback is None else torch.where(norm > 0, scaled, fallback)


def _inner(factor: Tensor) -> Tensor:
    """Return the inner products (R, R, N) of the columns of (K, R, N)."""
    return contract(factor.unsqueeze(2), factor.unsqueeze(1))
