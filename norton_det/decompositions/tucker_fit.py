"""Fits of Tucker-2 factors: to a kernel, and to a layer's output."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.decompositions.input_metric import InputMetric
from norton_det.linalg.conjugate_gradients import conjugate_gradients
from norton_det.linalg.least_squares import LeastSquares

ITERATIONS = 10
"""Iterations of higher-order orthogonal iteration."""
SWEEPS = 6
"""Sweeps of the output-aware alternating least squares from each start."""
STEPS = 8
"""Steps of conjugate gradients in each sweep."""
_TINY = 1e-300


class TuckerFactors(NamedTuple):
    """Factors of a kernel, float64: U of shape (I, r1), G (r2, r1, P) for P kernel positions, V (O, r2)."""

    u: Tensor
    g: Tensor
    v: Tensor

    def reconstruct(self) -> Tensor:
        """Return the kernel, of shape (O, I, P)."""
        return torch.einsum("ot,tsp,is->oip", self.v, self.g, self.u)

    def orthonormal(self) -> "TuckerFactors":
        """Return factors of the same kernel with orthonormal columns of U and V."""
        (u, r), (v, t) = torch.linalg.qr(self.u), torch.linalg.qr(self.v)
        return TuckerFactors(u, torch.einsum("at,tsp,bs->abp", t, self.g, r), v)


def tucker_decompose(weight: Tensor, rank: tuple[int, int]) -> TuckerFactors:
    """Decompose a kernel by orthogonal iteration from the leading singular vectors.

    U and V have orthonormal columns. The error never rises with either rank. A rank above what the other two dimensions
    of the kernel can span leaves columns without effect.

    Args:
        weight: the kernel, float64 of shape (O, I, P).
        rank: (r1, r2).
    """
    inner, outer = rank
    largest = weight.abs().max().clamp(min=_TINY)
    weight = weight / largest  # squares of it must neither overflow nor underflow
    v = _leading(weight.flatten(1), outer)
    for _ in range(ITERATIONS):
        u = _leading(torch.einsum("oip,ot->itp", weight, v).flatten(1), inner)
        v = _leading(torch.einsum("oip,is->osp", weight, u).flatten(1), outer)
    return TuckerFactors(u, torch.einsum("oip,ot,is->tsp", weight, v, u) * largest, v)


def truncated(weight: Tensor, ranks: Iterable[tuple[int, int]]) -> Iterator[TuckerFactors]:
    """Yield for each rank the sequentially truncated decomposition of a kernel (O, I, P): near to the best one.

    Vannieuwenhoven, Vandebril, Meerbergen, "A new truncation strategy for the higher-order singular value
    decomposition", 2012. All ranks share the directions of the input channels.
    """
    directions = _leading(weight.movedim(1, 0).flatten(1), weight.shape[1])
    projected = torch.einsum("oip,is->osp", weight, directions)
    for inner, outer in ranks:
        v = _leading(projected[:, :inner].flatten(1), outer)
        yield TuckerFactors(directions[:, :inner], torch.einsum("osp,ot->tsp", projected[:, :inner], v), v)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Return the leading left singular vectors, (N, count)."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors
    return vectors[:, -count:].flip(1)


def fit_output(
    regression: LeastSquares, start: TuckerFactors, sweeps: int = SWEEPS, second_start: bool = True
) -> TuckerFactors:
    """Return factors whose output error, summed over the filters, is no larger than that of ``start``.

    Two starts are improved by alternating least squares: ``start``, and the decomposition in the metric of the channels
    alone. Given the others, V and G are solved for; U is improved by conjugate gradients.

    Args:
        regression: of the O filters, with D = I * P.
        start: the factors so far.
        sweeps: alternations from each start.
        second_start: improve the second start too.
    """
    target, metric = regression.solution(), InputMetric(regression.metric, len(start.u))
    starts = [start]
    if second_start:
        mixed = tucker_decompose(metric.mix_channels(target), (start.u.shape[1], start.v.shape[1]))
        starts.append(mixed._replace(u=metric.unmix_channels(mixed.u)))

    def error(factors: TuckerFactors) -> float:
        value = regression.error(factors.reconstruct().flatten(1)).sum().item()
        return value if value == value else float("inf")

    return min((start, *(_sweeps(target, metric, begin, sweeps) for begin in starts)), key=error)


def _sweeps(target: Tensor, metric: InputMetric, factors: TuckerFactors, sweeps: int) -> TuckerFactors:
    factors = factors.orthonormal()
    for _ in range(sweeps):
        u, g, _ = factors
        filters = torch.einsum("tsp,is->tip", g, u).flatten(1)
        weighted = filters @ metric.matrix
        v = torch.linalg.qr(_solve(weighted @ filters.mT, weighted @ target.mT).mT).Q
        # V is orthonormal: what is left is a problem of r2 filters with this linear term.
        linear = (v.mT @ target @ metric.matrix).view(-1, len(u), g.shape[2])
        g = _solve_g(metric, linear, u)
        u = _improve_u(metric, linear, u, g)
        factors = TuckerFactors(u, g, v).orthonormal()
    return factors


def _solve_g(metric: InputMetric, linear: Tensor, u: Tensor) -> Tensor:
    """Return the best G (r2, r1, P) for a given U."""
    half = torch.einsum("ipjq,jt->iptq", metric.blocks, u).flatten(2)
    small = torch.einsum("is,ipk->spk", u, half).flatten(0, 1)
    reduced = torch.einsum("tip,is->tsp", linear, u).flatten(1)
    return _solve(small, reduced.mT).mT.view(-1, u.shape[1], linear.shape[2])


def _improve_u(metric: InputMetric, linear: Tensor, u: Tensor, g: Tensor) -> Tensor:
    """Improve U (I, r1) for a given G by conjugate gradients, preconditioned by the metric's Kronecker form."""
    gram = torch.einsum("tsp,pq,tuq->su", g, metric.positions, g)

    def apply(x: Tensor) -> Tensor:
        filters = torch.einsum("tsp,is->tip", g, x)
        return torch.einsum("tip,tsp->is", (filters.flatten(1) @ metric.matrix).view(filters.shape), g)

    def precondition(x: Tensor) -> Tensor:
        return _solve(gram, metric.solve_channels(x).mT).mT

    right = torch.einsum("tip,tsp->is", linear, g)
    return conjugate_gradients(apply, right, u, precondition, steps=STEPS, dims=(0, 1))


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return ``inv(matrix) @ right`` for a positive semi-definite matrix; in its null space the result is near zero."""
    damped = matrix.clone()
    damped.diagonal().add_(1e-10 * matrix.diagonal().mean() + _TINY)
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(damped).L)
