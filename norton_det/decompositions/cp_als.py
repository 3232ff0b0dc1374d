"""CP decomposition of all filters of a layer at once.

Each filter, a tensor of shape (I, Kh, Kw), is approximated by ``sum_r a_r o b_r o c_r``, by alternating least squares
(Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 2009, section 3.4) from several starts, batched
over filters and starts, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.decompositions.cp_sweeps import Fit, alternate, fit_a, unit
from norton_det.errors import DataError, UsageError

RIDGE = 1e-3
"""Weight of ||a||^2 in the least squares for the mode-1 factors of a filter of unit norm, b and c having unit columns.

The objective is at most 1 (its value at a = 0), so it bounds the energy of cancelling terms:
``sum ||term||^2 <= ||W||^2 / RIDGE``.
"""
_RACE = 10  # iterations that every start gets
_FINALISTS = 2  # starts that go on after those


class CPFactors(NamedTuple):
    """Factors of O filters, float64: ``W[o, i, h, w] ~ sum_r a[o, i, r] b[o, h, r] c[o, w, r]``."""

    a: Tensor
    """Mode 1, of shape (O, I, R)."""
    b: Tensor
    """Mode 2, of shape (O, Kh, R)."""
    c: Tensor
    """Mode 3, of shape (O, Kw, R)."""

    def reconstruct(self) -> Tensor:
        """Return the filters that the factors stand for, of shape (O, I, Kh, Kw)."""
        return torch.einsum("oir,ohr,owr->oihw", *self)


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
    largest = _largest(w)
    if not largest.isfinite().all():
        raise DataError(f"weights of filters {(~largest.isfinite()).nonzero().flatten().tolist()} are not finite")
    out, inputs, kh, kw = w.shape
    if rank >= min(kh * kw, inputs * kw, inputs * kh):
        return _exact(w.double(), rank)

    alive = largest.nonzero().flatten()
    if not len(alive):
        return CPFactors(*(largest.new_zeros(out, n, rank) for n in (inputs, kh, kw)))
    if len(alive) < out:
        w, largest = w[alive], largest[alive]
    x = w.flatten(2) / largest.view(-1, 1, 1)  # in float64; squares of tiny weights must not underflow
    gram = (x.mT @ x).permute(1, 2, 0).contiguous()
    norm = gram.diagonal().sum(-1).sqrt()
    b, c, fit = _best_of_starts(gram / norm.square(), (kh, kw), rank, seed, starts, max_iterations, tolerance)
    # What is small is scaled and put in order; a, which is large, follows.
    inverse, b, c = (factor.permute(2, 0, 1) for factor in (fit.inverse / norm, b, c))
    inverse, b, c = share_norm(inverse, b, c, norm * largest, fit.gram_a.diagonal().clamp(min=0).sqrt())
    factors = CPFactors(x @ inverse, b, c)
    if len(alive) == out:
        return factors
    return CPFactors(*(f.new_zeros(out, *f.shape[1:]).index_copy_(0, alive, f) for f in factors))


def _largest(w: Tensor) -> Tensor:
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
    dead = (w == 0).flatten(1).all(1)
    for factor in (a, b, c):
        factor[dead] = 0
    return CPFactors(a, b, c)


def _best_of_starts(
    gram: Tensor, kernel: tuple[int, int], rank: int, seed: int, starts: int, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Fit]:
    """Return unit b (Kh, R, N), c (Kw, R, N) of the best start for each ``gram``, and the fit of the a for them."""
    n = gram.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    random = [unit(torch.randn(k, rank, n * (starts - 1), generator=generator, dtype=gram.dtype)) for k in kernel]
    b, c = (torch.cat(pair, -1) for pair in zip(_svd_start(gram, kernel, rank), random, strict=True))
    for iterations, keep in ((min(_RACE, max_iterations), _FINALISTS), (max_iterations, 1)):
        grams = gram.repeat(1, 1, b.shape[-1] // n)
        b, c = alternate(grams, b, c, RIDGE, iterations, tolerance)
        ranking = fit_a(grams, b, c, RIDGE).error.view(-1, n).argsort(dim=0, stable=True)
        chosen = (ranking[:keep] * n + torch.arange(n)).flatten()
        b, c = b[..., chosen], c[..., chosen]
    return _without_ridge(gram, b, c, max_iterations, tolerance)


def _without_ridge(
    gram: Tensor, b: Tensor, c: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Fit]:
    """Go on without the ridge, and keep what that gives where it is better and its terms stay within the bound."""
    free_b, free_c = alternate(gram, b, c, 0.0, max_iterations, tolerance)
    free, held = fit_a(gram, free_b, free_c, 0.0), fit_a(gram, b, c, RIDGE)
    usable = (free.error < held.error) & (free.size_a <= 1 / RIDGE)  # false for NaN
    b, c = torch.where(usable, free_b, b), torch.where(usable, free_c, c)
    return b, c, Fit(*(torch.where(usable, new, old) for new, old in zip(free, held, strict=True)))


def _svd_start(gram: Tensor, kernel: tuple[int, int], rank: int) -> tuple[Tensor, Tensor]:
    """Take the leading right singular vectors of the mode-1 unfolding, and of each, as a matrix, the leading pair."""
    right = torch.linalg.eigh(gram.permute(2, 0, 1)).eigenvectors.flip(-1)[..., :rank]  # singular values squared fall
    u, _, vh = torch.linalg.svd(right.mT.unflatten(2, kernel))
    return u[..., 0].permute(2, 1, 0), vh[..., 0, :].permute(2, 1, 0)


def share_norm(a: Tensor, b: Tensor, c: Tensor, norm: Tensor, size: Tensor | None = None) -> tuple[Tensor, ...]:
    """Order terms by falling norm, and let a, b and c carry equal parts of it.

    Args:
        a: of shape (N, K, R), or what a is a linear function of.
        b: unit columns, of shape (N, Kh, R).
        c: unit columns, of shape (N, Kw, R).
        norm: what each problem is multiplied with, of shape (N,).
        size: norms of the columns of a, of shape (N, R); None: they are those of the first argument.
    """
    size = a.norm(dim=1) if size is None else size
    order = size.argsort(dim=1, descending=True, stable=True).unsqueeze(1)
    a, b, c = (f.gather(2, order.expand_as(f)) for f in (a, b, c))
    size = size.gather(1, order.squeeze(1)).unsqueeze(1)
    third = (size * norm.view(-1, 1, 1)).pow(1 / 3)
    return a * (third / size.clamp(min=1e-300)), b * third, c * third
