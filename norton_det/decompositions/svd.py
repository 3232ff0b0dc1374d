"""Two factors: a linear layer, or a convolution with any kernel, whose weight as a matrix has a low rank.

``W = B A``, where W is the weight as (O, D), D = I * Kh * Kw: a layer with the kernel and the geometry of the given
one, I -> r (A), and a linear layer or 1x1 convolution r -> O (B). The plain fit is the truncated singular value
decomposition, the best approximation of a rank (Eckart, Young, "The approximation of one matrix by another of lower
rank", 1936): of linear layers in Xue, Li, Gong, "Restructuring of deep neural network acoustic models with singular
value decomposition", Interspeech 2013, and in Denton et al., "Exploiting linear structure within convolutional networks
for efficient evaluation", arXiv:1404.0736; of convolutions in Zhang, Zou, He, Sun, "Accelerating very deep
convolutional networks for classification and detection", arXiv:1505.06798, which also has the fit to the outputs in
closed form.
"""

from math import ceil
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.narrow import narrow, select_
from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.conv import (
    DenseLayer,
    Size,
    check_finite,
    check_ungrouped,
    geometry,
    kernel_of,
    like_layer,
    not_pointwise,
)
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import LeastSquares
from norton_det.registry import Registry
from norton_det.spec import Rank, is_count

_FRACTIONS = (1 / 32, 1 / 16, *(n / 8 for n in range(1, 8)))
"""Of the largest rank: those from which an allocation chooses."""


class LowRankFactors(NamedTuple):
    """Factors of a weight (O, D), float64: A of shape (r, D), B (O, r)."""

    a: Tensor
    b: Tensor

    def product(self) -> Tensor:
        """Return the weight, of shape (O, D)."""
        return self.b @ self.a

    def balanced(self) -> "LowRankFactors":
        """Return factors of the same weight, given columns of B of length 1: each term's two vectors are equally long.

        So both fit into the dtype of a weight that does. A term of zeros keeps its column: it can be trained.
        """
        largest = self.a.abs().amax(1, keepdim=True)
        length = largest * (self.a / largest.where(largest > 0, 1)).norm(dim=1, keepdim=True)
        root = length.sqrt().where(length > 0, 1)
        return LowRankFactors(self.a / root, self.b * root.mT)


def truncated_svd(weight: Tensor, rank: int) -> LowRankFactors:
    """Return the factors of the nearest matrix of a rank, in the Frobenius norm.

    Args:
        weight: float64 of shape (O, D).
        rank: at most min(O, D).

    Example:
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> truncated_svd(weight, 1).product()
        tensor([[3., 0.],
                [0., 0.]], dtype=torch.float64)
    """
    small = torch.linalg.qr(weight.mT).R.mT  # at most (O, O), with the same left singular vectors
    return _projected(weight, torch.linalg.svd(small, full_matrices=False).U[:, :rank])


def fit_output(regression: LeastSquares, start: LowRankFactors) -> LowRankFactors:
    """Return the factors of the rank of ``start`` that minimise the regression's objective, summed over the filters.

    That is ``|(W - W*) S^1/2|^2`` for the solution W* without constraint and the metric S: its minimum at a rank is W*
    projected on the leading eigenvectors of ``W* S W*^T``, the second moment of the outputs that W* predicts. Where
    ``start`` has a smaller error all the same, that of the data without the ridge, it is returned.
    """
    target = regression.solution()
    vectors = torch.linalg.eigh(regression.predicted(target)).eigenvectors
    fitted = _projected(target, vectors[:, -start.b.shape[1] :].flip(1))
    better = regression.error(fitted.product()).sum() < regression.error(start.product()).sum()
    return fitted if better else start


def _projected(weight: Tensor, columns: Tensor) -> LowRankFactors:
    """Return the factors of a weight (O, D) projected on the space of orthonormal columns (O, r)."""
    return LowRankFactors(columns.mT @ weight, columns)


def _solve_svd(weight: Tensor, rank: int, *, seed: int = 0) -> LowRankFactors:
    """Fit a weight (O, ...); nothing is drawn, so that the seed has no effect."""
    check_finite(weight, "weights")
    return truncated_svd(weight.detach().to("cpu", torch.float64).flatten(1), rank)


SOLVERS: Registry[Any] = Registry("SVD solver")
SOLVERS.register("svd", _solve_svd)


class LowRank(Decomposition):
    """A linear layer or a convolution as two layers, I -> r -> O, and a bias; the first one has the kernel.

    One rank for all is meant for linear layers and 1x1 convolutions; a convolution with another kernel is decomposed
    where it is named.

    Args:
        layer: what the block replaces: its geometry, bias, device and dtype; its weights are ignored.
        rank: r, limited to the smaller side of the weight as a matrix (O, I * Kh * Kw).

    Raises:
        UsageError: ``layer`` is grouped, or the rank is no number of at least 1.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> linear = torch.nn.Linear(12544, 1024)
        >>> block = nd.LowRank(linear, 64)
        >>> block(torch.randn(2, 12544)).shape
        torch.Size([2, 1024])
        >>> sum(p.numel() for p in block.parameters()), sum(p.numel() for p in linear.parameters())
        (869376, 12846080)
        >>> nd.LowRank.from_layer(torch.nn.Conv2d(64, 128, 1), 16)(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 128, 32, 32])
    """

    rank: int
    implementations: ClassVar[tuple[str, ...]] = ("factored", "dense")
    """Two layers; one."""
    solvers: ClassVar[Registry[Any]] = SOLVERS
    default_solver: ClassVar[str] = "svd"
    rank_is_width: ClassVar[bool] = True
    projects_outputs: ClassVar[bool] = True

    def __init__(self, layer: DenseLayer, rank: Rank) -> None:
        super().__init__()
        self.rank = self.rank_for(layer, rank)
        self.implementation = "factored"
        self.out_channels = len(layer.weight)
        options: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        self.is_linear = isinstance(layer, nn.Linear)
        self.reduce: DenseLayer
        self.expand: DenseLayer
        if isinstance(layer, nn.Linear):
            self.in_channels = layer.in_features
            self.reduce = nn.Linear(self.in_channels, self.rank, **options)
            self.expand = nn.Linear(self.rank, self.out_channels, **options)
        else:
            self.in_channels = layer.in_channels
            kernel = kernel_of(layer)
            self.reduce = nn.Conv2d(self.in_channels, self.rank, kernel, **geometry(layer), **options)
            self.expand = nn.Conv2d(self.rank, self.out_channels, 1, **options)
        self.bias = None if layer.bias is None else nn.Parameter(torch.zeros_like(layer.bias))

    @classmethod
    def suits(cls, layer: DenseLayer) -> str | None:
        """Return why one rank for all is not meant for ``layer``: it is neither linear nor a 1x1 convolution."""
        return not_pointwise(layer)

    @classmethod
    def rank_for(cls, layer: DenseLayer, rank: Rank) -> int:
        """Return ``rank``, limited to the smaller side of the weight as a matrix.

        Raises:
            UsageError: ``layer`` is grouped, or ``rank`` is not one positive number.
        """
        check_ungrouped(layer, "low-rank")
        if not is_count(rank) or not isinstance(rank, int):
            raise UsageError(f"rank is {rank}; expected one number of at least 1 for an SVD")
        return min(rank, _largest_rank(layer))

    @classmethod
    def choices(cls, layer: DenseLayer) -> list[Rank]:
        """Return a 32nd, a 16th and 1 to 7 eighths of the largest rank, rounded up."""
        return list(dict.fromkeys(ceil(_largest_rank(layer) * fraction) for fraction in _FRACTIONS))

    @staticmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights; the first layer strides."""
        weights = rank * (width_in * kernel[0] * kernel[1] + width_out)
        return weights * outputs[0] * outputs[1], weights

    @staticmethod
    def between(width_out: Any, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, ...]:
        """Return the elements of what the first layer writes."""
        return (rank * outputs[0] * outputs[1],)

    @classmethod
    def like(cls, layer: DenseLayer, rank: Rank) -> Self:
        """Return an unfitted block for ``layer``."""
        return cls(layer, rank)

    def refit(
        self, regression: LeastSquares, *, seed: int = 0, sweeps: int | None = None, second_start: bool = True
    ) -> None:
        """Lower the output error, summed over the filters, in closed form; see :func:`fit_output`."""
        start = self._factors()
        fitted = fit_output(regression, start)
        if fitted is not start:
            self._write(fitted)

    @torch.no_grad()
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number."""
        weight = self.expand.weight
        weight.mul_(scale.to(weight).view(-1, *[1] * (weight.ndim - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W') as ``nn.Conv2d`` would, or (..., I) to (..., O) as ``nn.Linear`` would."""
        if torch.jit.is_scripting() or self.implementation == "factored":  # type: ignore[attr-defined]
            reduced = self.reduce(x)
            if self.is_linear:
                return F.linear(reduced, self.expand.weight, self.bias)
            return F.conv2d(reduced, self.expand.weight, self.bias)
        return self._dense(x)

    @torch.jit.unused
    def _dense(self, x: Tensor) -> Tensor:
        """Compute as one layer; scripts of torch have the factored one."""
        if isinstance(self.reduce, nn.Linear):
            return F.linear(x, self.weight(), self.bias)
        convolved: Tensor = self.reduce._conv_forward(x, self.weight(), self.bias)
        return convolved

    def weight(self) -> Tensor:
        """Return the weight (O, I) or (O, I, Kh, Kw), differentiable by the factors."""
        a, b = self.reduce.weight, self.expand.weight
        weight: Tensor = (b.flatten(1) @ a.flatten(1)).unflatten(1, a.shape[1:])
        return weight

    def to_dense(self) -> DenseLayer:
        """Return the layer with the reconstructed weight; outputs agree up to rounding."""
        like = self.reduce.weight
        weight = self._factors().product().unflatten(1, like.shape[1:]).to(like)
        return like_layer(self.reduce, weight, self.bias).train(self.training)

    def geometry(self) -> dict[str, Any]:
        """Return stride, padding, dilation and padding mode of the convolution that is replaced; none if linear."""
        return geometry(self.reduce)

    def factors(self) -> None:
        """Return None: all filters share A, so that criteria that need factors do not apply."""
        return

    def term_energy(self) -> Tensor:
        """Return each filter's ``||W||^2``: the terms are orthogonal, so that there is no degeneracy."""
        return self._factors().product().square().sum(1)

    def _factors(self) -> LowRankFactors:
        return LowRankFactors(*(part.weight.detach().cpu().double().flatten(1) for part in (self.reduce, self.expand)))

    @torch.no_grad()
    def _write(self, factors: LowRankFactors) -> None:
        for part, factor in zip((self.reduce, self.expand), factors.balanced(), strict=True):
            part.weight.copy_(factor.view_as(part.weight))
            check_finite(part.weight, f"factors in {part.weight.dtype}")

    def extra_repr(self) -> str:
        """Show the geometry of the layer that the block replaces, and the rank."""
        kernel = "" if self.is_linear else f", kernel_size={kernel_of(self.reduce)}"
        return f"{self.in_channels}, {self.out_channels}{kernel}, rank={self.rank}"


def _largest_rank(layer: DenseLayer) -> int:
    return min(len(layer.weight), layer.weight[0].numel())


DECOMPOSITIONS.register("svd", LowRank)


@narrow.register
def _(layer: LowRank, inputs: Tensor | None, outputs: Tensor | None) -> None:
    narrow(layer.reduce, inputs, None)
    narrow(layer.expand, None, outputs)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.reduce.weight.shape[1], len(layer.expand.weight)
