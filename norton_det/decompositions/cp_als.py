"""CP decomposition of all filters of a layer at once.

Each filter, a tensor of shape (I, Kh, Kw), is approximated by ``sum_r a_r o b_r o c_r``, by alternating least squares
(Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 2009, section 3.4) from several starts, batched
over filters and starts, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.decompositions.conv import check_finite
from norton_det.decompositions.cp_factors import CPFactors, balance
from norton_det.decompositions.cp_sweeps import Fit, alternate, fit_a, unit
from norton_det.errors import UsageError

RIDGE = 1e-3
"""Weight of ||a||^2 in the least squares for the mode-1 factors of a filter of unit norm, b and c having unit columns.

The objective is at most 1 (its value at a = 0), which bounds the degeneracy: ``sum ||term||^2 <= ||W||^2 / RIDGE``.
"""
_TRIAL_ITERATIONS = 10  # of every start
_FINALISTS = 2  # starts that are continued after those


def cp_decompose(
    weight: Tensor, rank: int, *, seed: int = 0, starts: int = 5, max_iterations: int = 500, tolerance: float = 1e-2
) -> CPFactors:
    """Decompose each filter of a convolution.

    From ``rank >= min(Kh * Kw, I * Kw, I * Kh)`` on the factors are written down directly and exact. A zero filter has
    zero factors. The same seed gives bitwise the same factors.

    Args:
        weight: the filters, of shape (O, I, Kh, Kw), any floating dtype, finite.
        rank: number of terms R.
        seed: of the random starts (the first start is the singular value decomposition's, without randomness).
        starts: number of starts; the best is kept, filter by filter.
        max_iterations: of alternating least squares.
        tolerance: a filter is done when 10 iterations lower its squared error by less than this fraction of it.

    Returns:
        The factors on the CPU, terms in order of falling norm, the norm shared evenly by a, b and c.

    Raises:
        UsageError: rank below 1.
        DataError: weights that are not finite; the message names the filters.
    """
    if rank < 1:
        raise UsageError(f"rank is {rank}; expected at least 1")
    w = weight.detach().cpu()
    largest = _largest_magnitude(w)
    check_finite(largest, "weights")
    out, inputs, kh, kw = w.shape
    if rank >= min(kh * kw, inputs * kw, inputs * kh):
        return _exact(w.double(), rank)
    options = _Options(seed, starts, max_iterations, tolerance)
    nonzero = largest.nonzero().flatten()
    if len(nonzero) == out:
        return _fit(w, largest, rank, options)
    factors = CPFactors.zeros(out, (inputs, kh, kw), rank)
    if len(nonzero):
        for factor, part in zip(factors, _fit(w[nonzero], largest[nonzero], rank, options), strict=True):
            factor[nonzero] = part
    return factors


class _Options(NamedTuple):
    """How :func:`cp_decompose` searches; its arguments of the same names."""

    seed: int
    starts: int
    max_iterations: int
    tolerance: float


def _fit(w: Tensor, largest: Tensor, rank: int, options: _Options) -> CPFactors:
    """Decompose filters that are not zero; ``largest`` is the largest magnitude in each, of shape (O,)."""
    x = w.flatten(2) / largest.view(-1, 1, 1)  # in float64; squares of tiny weights must not underflow
    gram = (x.mT @ x).permute(1, 2, 0).contiguous()
    norm = gram.diagonal().sum(-1).sqrt()
    b, c, fit = _best_of_starts(gram / norm.square(), (w.shape[2], w.shape[3]), rank, options)
    # What is small is scaled and put in order; a, which is large, follows.
    inverse, b, c = (factor.permute(2, 0, 1) for factor in (fit.inverse / norm, b, c))
    size = fit.gram_a.diagonal().clamp(min=0).sqrt()
    inverse, b, c = balance(inverse, b, c, size, (norm * largest).view(-1, 1, 1))
    return CPFactors(x @ inverse, b, c)


def _largest_magnitude(w: Tensor) -> Tensor:
    """Return the largest magnitude in each filter, float64 of shape (O,); not finite where a weight is not."""
    low, high = w.flatten(1).aminmax(dim=1)
    return torch.maximum(-low, high).double()


def _exact(w: Tensor, rank: int) -> CPFactors:
    """Write one term per fibre of the mode whose fibres are fewest; the factors of the other modes are unit vectors."""
    out, inputs, kh, kw = w.shape
    a, b, c = w.new_zeros(out, inputs, rank), w.new_zeros(out, kh, rank), w.new_zeros(out, kw, rank)
    counts = (kh * kw, inputs * kw, inputs * kh)
    mode = counts.index(min(counts))
    r = torch.arange(counts[mode])
    if mode == 0:
        a[:, :, r], b[:, r // kw, r], c[:, r % kw, r] = w.flatten(2), 1, 1
    elif mode == 1:
        a[:, r // kw, r], b[:, :, r], c[:, r % kw, r] = 1, w.permute(0, 2, 1, 3).flatten(2), 1
    else:
        a[:, r // kh, r], b[:, r % kh, r], c[:, :, r] = 1, 1, w.permute(0, 3, 1, 2).flatten(2)
    zero = (w == 0).flatten(1).all(1)
    for factor in (a, b, c):
        factor[zero] = 0
    return CPFactors(a, b, c)


def _best_of_starts(gram: Tensor, kernel: tuple[int, int], rank: int, options: _Options) -> tuple[Tensor, Tensor, Fit]:
    """Return unit b (Kh, R, N), c (Kw, R, N) of the best start for each ``gram``, and the fit of the a for them."""
    n, limit, tolerance = gram.shape[-1], options.max_iterations, options.tolerance
    generator = torch.Generator().manual_seed(options.seed)
    count = n * (options.starts - 1)
    random = [unit(torch.randn(k, rank, count, generator=generator, dtype=gram.dtype)) for k in kernel]
    b, c = (torch.cat(pair, -1) for pair in zip(_svd_start(gram, kernel, rank), random, strict=True))
    for iterations, keep in ((min(_TRIAL_ITERATIONS, limit), _FINALISTS), (limit, 1)):
        grams = gram.repeat(1, 1, b.shape[-1] // n)
        b, c = alternate(grams, b, c, RIDGE, iterations, tolerance)
        ranking = fit_a(grams, b, c, RIDGE).error.view(-1, n).argsort(dim=0, stable=True)
        chosen = (ranking[:keep] * n + torch.arange(n)).flatten()
        b, c = b[..., chosen], c[..., chosen]
    return _without_ridge(gram, b, c, options)


def _without_ridge(gram: Tensor, b: Tensor, c: Tensor, options: _Options) -> tuple[Tensor, Tensor, Fit]:
    """Continue without the ridge; keep the result where its error is lower and its degeneracy within the bound."""
    free_b, free_c = alternate(gram, b, c, 0.0, options.max_iterations, options.tolerance)
    free, ridged = fit_a(gram, free_b, free_c, 0.0), fit_a(gram, b, c, RIDGE)
    usable = (free.error < ridged.error) & (free.size_a <= 1 / RIDGE)  # false for NaN
    b, c = torch.where(usable, free_b, b), torch.where(usable, free_c, c)
    return b, c, Fit(*(torch.where(usable, new, old) for new, old in zip(free, ridged, strict=True)))


def _svd_start(gram: Tensor, kernel: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
    """Take the leading right singular vectors of the mode-1 unfolding, and of each, as a matrix, the leading pair."""
    right = torch.linalg.eigh(gram.permute(2, 0, 1)).eigenvectors.flip(-1)[..., :rank]  # singular values squared fall
    u, _, vh = torch.linalg.svd(right.mT.unflatten(2, kernel))
    return u[..., 0].permute(2, 1, 0), vh[..., 0, :].permute(2, 1, 0)
