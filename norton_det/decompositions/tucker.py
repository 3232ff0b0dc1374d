"""Tucker-2: a convolution whose kernel has few dimensions over its input and over its output channels.

``W[o, i, p] = sum_st V[o, t] G[t, s, p] U[i, s]`` for the places p of the kernel: a 1x1 convolution I -> r1 (U), a
k x k core r1 -> r2 (G) and a 1x1 r2 -> O (V) (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast
and Low Power Mobile Applications", arXiv:1511.06530). The factors are found by higher-order orthogonal iteration (De
Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order tensors",
2000), and to keep the layer's output by alternating least squares in the metric of its inputs.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels import narrow, select_
from norton_det.decompositions.aware import over_channels, over_places
from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition, Size
from norton_det.decompositions.forms import forms_of, like_conv, plain
from norton_det.errors import DataError, UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.registry import Registry
from norton_det.spec import Rank, is_rank

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


class TuckerConv2d(Decomposition):
    """A convolution as a 1x1 (I -> r1), a k x k core (r1 -> r2) and a 1x1 (r2 -> O), and a bias.

    Args:
        conv: the convolution for which it stands: geometry, bias, device and dtype; its weights are not looked at.
        rank: (r1, r2), or one number for both, at most as many as there are channels.

    Raises:
        UsageError: ``conv`` is grouped, or a rank below 1.
    """

    rank: tuple[int, int]
    forms: ClassVar[tuple[str, ...]] = ("factored", "dense")

    def __init__(self, conv: nn.Conv2d, rank: Rank) -> None:
        super().__init__()
        if conv.groups != 1:
            raise UsageError(f"a convolution with groups={conv.groups} has no Tucker block; expected groups=1")
        self.rank = self.rank_for(conv, rank)
        self.form = "factored"
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        options: dict[str, Any] = {"bias": False, "device": conv.weight.device, "dtype": conv.weight.dtype}
        self.reduce = nn.Conv2d(conv.in_channels, self.rank[0], 1, **options)
        geometry: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")
        }
        self.core = nn.Conv2d(self.rank[0], self.rank[1], _size(conv), **geometry, **options)
        self.expand = nn.Conv2d(self.rank[1], conv.out_channels, 1, **options)
        self.bias = None if conv.bias is None else nn.Parameter(torch.zeros_like(conv.bias))

    @classmethod
    def rank_for(cls, conv: nn.Conv2d, rank: Rank) -> tuple[int, int]:
        """Return (r1, r2), not above the numbers of channels.

        Raises:
            UsageError: a rank below 1.
        """
        if not is_rank(rank):
            raise UsageError(f"rank is {rank}; expected one or two numbers of at least 1 for a Tucker block")
        inner, outer = rank if isinstance(rank, tuple) else (rank, rank)
        return min(inner, conv.in_channels), min(outer, conv.out_channels)

    @classmethod
    def choices(cls, conv: nn.Conv2d) -> list[Rank]:
        """Return the same eighths of the input and the output channels."""
        wanted = [(-(-conv.in_channels * n // 8), -(-conv.out_channels * n // 8)) for n in range(1, 8)]
        return list(dict.fromkeys(wanted))

    @staticmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights; the core strides."""
        inner, outer = rank
        before, places, after = inputs[0] * inputs[1], kernel[0] * kernel[1], outputs[0] * outputs[1]
        weights = (width_in * inner, inner * outer * places, outer * width_out)
        return weights[0] * before + (weights[1] + weights[2]) * after, sum(weights)

    @classmethod
    def like(cls, conv: nn.Conv2d, rank: Rank) -> Self:
        """Return an unfitted block for ``conv``."""
        return cls(conv, rank)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, rank: Rank, *, seed: int = 0) -> Self:
        """Return the block with the best approximation found of the kernel of ``conv``; nothing is drawn.

        Raises:
            UsageError: ``conv`` is grouped, or a rank below 1.
            DataError: weights that are not finite; the message names the filters.
        """
        block = cls(conv, rank)
        weight = conv.weight.detach().to("cpu", torch.float64).flatten(2)
        finite = weight.isfinite().flatten(1).all(1)
        if not finite.all():
            raise DataError(f"weights of filters {(~finite).nonzero().flatten().tolist()} are not finite")
        block._write(tucker_decompose(weight, block.rank))
        if block.bias is not None and conv.bias is not None:
            with torch.no_grad():
                block.bias.copy_(conv.bias)
        return block.train(conv.training)

    def refit(self, regression: Regression, *, seed: int = 0, sweeps: int | None = None) -> None:
        """Bring the outputs of all filters together nearer to what is wanted; see :func:`fit_output`."""
        self._write(fit_output(regression, self._factors(), sweeps or SWEEPS))

    @torch.no_grad()
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number."""
        self.expand.weight.mul_(scale.to(self.expand.weight).view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W'), as ``nn.Conv2d`` would."""
        if self.form == "dense":
            dense: Tensor = self.core._conv_forward(x, self.kernel(), self.bias)
            return dense
        return F.conv2d(self.core(self.reduce(x)), self.expand.weight, self.bias)

    def kernel(self) -> Tensor:
        """Return the kernel (O, I, Kh, Kw), differentiable by the factors."""
        u, v = self.reduce.weight.flatten(1), self.expand.weight.flatten(1)
        return torch.einsum("ot,tshw,si->oihw", v, self.core.weight, u)

    def to_dense(self) -> nn.Conv2d:
        """Return the convolution with the reconstructed kernel; outputs agree up to rounding."""
        with torch.no_grad():
            kernel = self._factors().reconstruct().unflatten(2, _size(self.core)).to(self.core.weight)
            return like_conv(self.core, kernel, self.bias, 1).train(self.training)

    def factors(self) -> None:
        """Return None: all filters share U and G, so that criteria that need factors do not apply."""
        return

    def term_energy(self) -> Tensor:
        """Return each filter's ``||W||^2``: in orthonormal bases no terms cancel each other."""
        return self._factors().reconstruct().flatten(1).square().sum(1)

    def _factors(self) -> TuckerFactors:
        u, g, v = (part.weight.detach().cpu().double() for part in (self.reduce, self.core, self.expand))
        return TuckerFactors(u.flatten(1).mT, g.flatten(2), v.flatten(1))

    @torch.no_grad()
    def _write(self, factors: TuckerFactors) -> None:
        self.reduce.weight.copy_(factors.u.mT[:, :, None, None])
        self.core.weight.copy_(factors.g.unflatten(2, _size(self.core)))
        self.expand.weight.copy_(factors.v[:, :, None, None])

    def extra_repr(self) -> str:
        """Show the rank and what is stood for."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={_size(self.core)}, rank={self.rank}"


DECOMPOSITIONS.register("tucker2", TuckerConv2d)


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


def _size(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.kernel_size[0], conv.kernel_size[-1]


def _factored(block: TuckerConv2d) -> nn.Module:
    return nn.Sequential(
        plain(block.reduce), plain(block.core), like_conv(block.expand, block.expand.weight, block.bias, 1)
    )


def _dense(block: TuckerConv2d) -> nn.Module:
    return block.to_dense()


EXPANSIONS: Registry[Callable[[TuckerConv2d], nn.Module]] = Registry("form")
EXPANSIONS.register("factored", _factored)
EXPANSIONS.register("dense", _dense)


@forms_of.register
def _(block: TuckerConv2d) -> Registry[Callable[[Any], nn.Module]]:
    return EXPANSIONS


@narrow.register
def _(layer: TuckerConv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    narrow(layer.reduce, inputs, None)
    narrow(layer.expand, None, outputs)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.reduce.in_channels, layer.expand.out_channels
