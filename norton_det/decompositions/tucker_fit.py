"""Fits of Tucker-2 factors: to a kernel, and to a layer's output."""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_det.decompositions.cp_output_fit import over_channels, over_places
from norton_det.linalg.least_squares import Regression

ITERATIONS = 10  # of orthogonal iteration


SWEEPS = 6  # of alternating least squares


STEPS = 8  # of conjugate gradients in each sweep


_TINY = 1e-300


class TuckerFactors(NamedTuple):
    """Factors of a kernel, float64: U of shape (I, r1), G (r2, r1, P) for P places, V (O, r2)."""

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
    """Decompose a kernel (O, I, P), float64, by orthogonal iteration from the leading singular vectors.

    U has orthonormal columns, and V; the error never rises with either rank. A rank above what the other two dimensions
    of the kernel can span leaves columns without effect.
    """
    inner, outer = rank
    v = _leading(weight.flatten(1), outer)
    for _ in range(ITERATIONS):
        u = _leading(torch.einsum("oip,ot->itp", weight, v).flatten(1), inner)
        v = _leading(torch.einsum("oip,is->osp", weight, u).flatten(1), outer)
    return TuckerFactors(u, torch.einsum("oip,ot,is->tsp", weight, v, u), v)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Return the leading left singular vectors, (N, count)."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors
    return vectors[:, -count:].flip(1)


def fit_output(regression: Regression, start: TuckerFactors, sweeps: int = SWEEPS) -> TuckerFactors:
    """Return factors with which the outputs of all filters together come nearer to what is wanted, never farther.

    Two starts are improved by alternating least squares: the given one, and the decomposition in the metric of the
    channels alone. Given the others, V and G are solved for; U is improved by conjugate gradients.
    """
    target, metric = regression.solution(), regression.metric
    inputs = len(start.u)
    root = torch.linalg.cholesky(over_channels(metric, inputs))
    mixed = tucker_decompose(root.mT @ target.view(len(target), inputs, -1), (start.u.shape[1], start.v.shape[1]))
    other = mixed._replace(u=torch.linalg.solve_triangular(root.mT, mixed.u, upper=True))

    def error(factors: TuckerFactors) -> float:
        value = regression.error(factors.reconstruct().flatten(1)).sum().item()
        return value if value == value else float("inf")

    return min((start, *(_sweeps(target, metric, begin, sweeps) for begin in (start, other))), key=error)


def _sweeps(target: Tensor, metric: Tensor, factors: TuckerFactors, sweeps: int) -> TuckerFactors:
    u, g, _ = factors.orthonormal()
    inputs, places = len(u), g.shape[2]
    blocks = metric.view(inputs, places, inputs, places)
    channels = torch.linalg.cholesky(over_channels(metric, inputs))
    around = over_places(metric, inputs)
    for _ in range(sweeps):
        filters = torch.einsum("tsp,is->tip", g, u).flatten(1)
        weighted = filters @ metric
        v = torch.linalg.qr(_solve(weighted @ filters.mT, weighted @ target.mT).mT).Q
        wanted = v.mT @ target @ metric  # V is orthonormal: what is left is a problem of r2 filters
        half = torch.einsum("ipjq,jt->iptq", blocks, u).flatten(2).flatten(0, 1)
        small = torch.einsum("is,ipk->spk", u, half.view(inputs, places, -1)).flatten(0, 1)
        reduced = torch.einsum("tip,is->tsp", wanted.view(-1, inputs, places), u).flatten(1)
        g = _solve(small, reduced.mT).mT.view(-1, u.shape[1], places)
        u = _solve_u(metric, wanted.view(-1, inputs, places), u, g, channels, around)
        u, g, v = TuckerFactors(u, g, v).orthonormal()
    return TuckerFactors(u, g, v)


def _solve_u(metric: Tensor, wanted: Tensor, u: Tensor, g: Tensor, channels: Tensor, around: Tensor) -> Tensor:
    """Improve U by conjugate gradients, preconditioned by the metric's Kronecker form."""
    gram = torch.einsum("tsp,pq,tuq->su", g, around / around.trace(), g)

    def apply(x: Tensor) -> Tensor:
        filters = torch.einsum("tsp,is->tip", g, x)
        return torch.einsum("tip,tsp->is", (filters.flatten(1) @ metric).view(filters.shape), g)

    def precondition(x: Tensor) -> Tensor:
        return _solve(gram, torch.cholesky_solve(x, channels).mT).mT

    residual = torch.einsum("tip,tsp->is", wanted, g) - apply(u)
    z = precondition(residual)
    direction, size = z, (residual * z).sum()
    for _ in range(STEPS):
        product = apply(direction)
        step = size / (direction * product).sum().clamp(min=_TINY)
        u, residual = u + step * direction, residual - step * product
        z = precondition(residual)
        size, old = (residual * z).sum(), size
        direction = z + size / old.clamp(min=_TINY) * direction
    return u


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return ``inv(matrix) @ right`` for a positive semi-definite matrix; directions that it lacks stay zero or so."""
    damped = matrix.clone()
    damped.diagonal().add_(1e-10 * matrix.diagonal().mean() + _TINY)
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(damped).L)
