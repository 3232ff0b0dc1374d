"""CP decomposition of all filters of a layer at once.

Each filter, a tensor of shape (I, Kh, Kw), is approximated by ``sum_r a_r o b_r o c_r``. Its mode-1 unfolding has rank
Kh * Kw at most, so a QR factorisation shrinks I to that before alternating least squares (Kolda and Bader, "Tensor
Decompositions and Applications", SIAM Review 2009, section 3.4) runs, batched over filters and starts, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.errors import DataError, UsageError

RIDGE = 1e-3
"""Weight of ||a||^2 in the least squares for the mode-1 factors of a filter of unit norm, b and c having unit columns.

The objective is at most 1 (its value at a = 0), so it bounds the energy of cancelling terms:
``sum ||term||^2 <= ||W||^2 / RIDGE``.
"""
_SOLVE_RIDGE = 1e-12  # of the mean diagonal: only keeps Cholesky going on collinear terms
_CHECK_EVERY = 10
_RACE = 20  # iterations that every start gets; the better two of them go on


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
    weight: Tensor, rank: int, *, seed: int = 0, starts: int = 5, max_iterations: int = 500, tolerance: float = 1e-3
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
    w = weight.detach().to("cpu", torch.float64)
    finite = w.isfinite().flatten(1).all(1)
    if not finite.all():
        raise DataError(f"weights of filters {(~finite).nonzero().flatten().tolist()} are not finite")
    out, inputs, kh, kw = w.shape
    if rank >= min(kh * kw, inputs * kw, inputs * kh):
        return _exact(w, rank)

    norm = w.abs().amax((1, 2, 3))  # first by the maximum: squares of tiny weights must not underflow
    norm = norm * (w / norm.clamp(min=1e-300).view(-1, 1, 1, 1)).flatten(1).norm(dim=1)
    alive = norm.nonzero().flatten()
    unit = (w[alive] / norm[alive].view(-1, 1, 1, 1)).flatten(2)
    basis, core = torch.linalg.qr(unit) if inputs > kh * kw else (None, unit)
    a, b, c = _best_of_starts(core.unflatten(2, (kh, kw)), rank, seed, starts, max_iterations, tolerance)
    if basis is not None:
        a = basis @ a
    factors = CPFactors(*(w.new_zeros(out, n, rank) for n in (inputs, kh, kw)))
    for full, part in zip(factors, share_norm(a, b, c, norm[alive]), strict=True):
        full[alive] = part
    return factors


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
    x: Tensor, rank: int, seed: int, starts: int, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a (N, M, R) and unit b (N, Kh, R), c (N, Kw, R) of the best start for each tensor in x (N, M, Kh, Kw)."""
    n = x.shape[0]
    generator = torch.Generator().manual_seed(seed)
    random = [_unit(torch.randn(n * (starts - 1), k, rank, generator=generator, dtype=x.dtype)) for k in x.shape[2:]]
    b, c = (torch.cat(pair) for pair in zip(_svd_start(x, rank, generator), random, strict=True))
    a, b, c = _als(x.repeat(starts, 1, 1, 1), b, c, RIDGE, min(_RACE, max_iterations), tolerance)
    finalists = min(2, starts)
    ranking = _squared_error(x.repeat(starts, 1, 1, 1), a, b, c).view(starts, n).argsort(dim=0, stable=True)
    chosen = (ranking[:finalists] * n + torch.arange(n)).flatten()
    a, b, c = _als(x.repeat(finalists, 1, 1, 1), b[chosen], c[chosen], RIDGE, max_iterations, tolerance)
    error = _squared_error(x.repeat(finalists, 1, 1, 1), a, b, c)
    best = error.view(finalists, n).argmin(0) * n + torch.arange(n)
    return _without_ridge(x, a[best], b[best], c[best], max_iterations, tolerance)


def _without_ridge(
    x: Tensor, a: Tensor, b: Tensor, c: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Go on without the ridge, and keep what that gives where it is better and its terms stay within the bound."""
    free = _als(x, b, c, 0.0, max_iterations, tolerance)
    better = _squared_error(x, *free) < _squared_error(x, a, b, c)  # false for NaN
    bounded = free[0].square().sum((1, 2)) <= 1 / RIDGE
    usable = (better & bounded).view(-1, 1, 1)
    a, b, c = (torch.where(usable, new, old) for new, old in zip(free, (a, b, c), strict=True))
    return a, b, c


def _svd_start(x: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Take the leading right singular vectors of the mode-1 unfolding, and of each, as a matrix, the leading pair."""
    n, _, kh, kw = x.shape
    right = torch.linalg.svd(x.flatten(2), full_matrices=False).Vh[:, :rank]
    u, _, vh = torch.linalg.svd(right.unflatten(2, (kh, kw)))
    missing = rank - right.shape[1]
    extra = [_unit(torch.randn(n, k, missing, generator=generator, dtype=x.dtype)) for k in (kh, kw)]
    return torch.cat([u[..., 0].mT, extra[0]], 2), torch.cat([vh[..., 0, :].mT, extra[1]], 2)


def _als(
    x: Tensor, b: Tensor, c: Tensor, ridge: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Alternate until every problem has converged; those that have are taken out of the batch."""
    a, error = _solve_a(x, b, c, ridge)
    done = (a.clone(), b.clone(), c.clone())
    active = torch.arange(x.shape[0])
    for iteration in range(1, max_iterations + 1):
        y = (x.flatten(2).mT @ a).unflatten(1, x.shape[2:])  # (N, Kh, Kw, R): x contracted with a
        b = _unit(_solve(_gram(a) * _gram(c), torch.einsum("nhwr,nwr->nhr", y, c)), b)
        c = _unit(_solve(_gram(a) * _gram(b), torch.einsum("nhwr,nhr->nwr", y, b)), c)
        a, new_error = _solve_a(x, b, c, ridge)
        if iteration % _CHECK_EVERY == 0 or iteration == max_iterations:
            for full, part in zip(done, (a, b, c), strict=True):
                full[active] = part
            going = error - new_error > tolerance * new_error
            error = new_error[going]
            active, x, a, b, c = (t[going] for t in (active, x, a, b, c))
            if not len(active):
                break
    return done


def _squared_error(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (x - torch.einsum("nmr,nhr,nwr->nmhw", a, b, c)).square().sum((1, 2, 3))


def _solve_a(x: Tensor, b: Tensor, c: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the least-squares a (N, M, R) for given b, c and the squared error (N,), the ridge's term included."""
    khatri_rao = torch.einsum("nhr,nwr->nhwr", b, c).flatten(1, 2)
    gram = _gram(b) * _gram(c)
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    target = x.flatten(2) @ khatri_rao
    a = _solve(gram, target)
    error = x.square().sum((1, 2, 3)) - 2 * (a * target).sum((1, 2)) + (a * (a @ gram)).sum((1, 2))
    return a, error


def _gram(factor: Tensor) -> Tensor:
    return factor.mT @ factor


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """Return ``target @ inv(gram)`` for positive semi-definite ``gram`` (N, R, R) and ``target`` (N, K, R)."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300).view(-1, 1, 1)
    factor, info = torch.linalg.cholesky_ex(gram + _SOLVE_RIDGE * scale * eye)
    if info.any():
        failed = info.nonzero().flatten()
        factor[failed] = torch.linalg.cholesky(gram[failed] + 1e-6 * scale[failed] * eye)
    return torch.cholesky_solve(target.mT, factor).mT


def _unit(factor: Tensor, fallback: Tensor | None = None) -> Tensor:
    """Scale the columns of (N, K, R) to norm 1; a zero column (its term has vanished) is taken from ``fallback``."""
    norm = factor.square().sum(1, keepdim=True).sqrt()
    unit = factor / norm.clamp(min=1e-300)
    return unit if fallback is None else torch.where(norm > 0, unit, fallback)


def share_norm(a: Tensor, b: Tensor, c: Tensor, norm: Tensor) -> tuple[Tensor, ...]:
    """Order terms by falling norm, and let a, b and c carry equal parts of it (b and c come with unit columns)."""
    size = a.norm(dim=1)
    order = size.argsort(dim=1, descending=True, stable=True).unsqueeze(1)
    a, b, c = (f.gather(2, order.expand_as(f)) for f in (a, b, c))
    size = size.gather(1, order.squeeze(1)).unsqueeze(1)
    third = (size * norm.view(-1, 1, 1)).pow(1 / 3)
    return a / size.clamp(min=1e-300) * third, b * third, c * third
