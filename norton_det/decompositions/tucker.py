"""Tucker-2: a convolution whose kernel has few dimensions over its input and over its output channels.

``W[o, i, p] = sum_st V[o, t] G[t, s, p] U[i, s]`` for the kernel positions p: a 1x1 convolution I -> r1 (U), a k x k
core r1 -> r2 (G) and a 1x1 r2 -> O (V) (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low
Power Mobile Applications", arXiv:1511.06530). The factors are computed by higher-order orthogonal iteration, the
alternating least squares of Tucker decompositions (De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and
rank-(R1, ..., RN) approximation of higher-order tensors", 2000); the output-aware fit is alternating least squares in
the metric of the layer's inputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.narrow import narrow, select_
from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.conv import DenseLayer, Size, as_convolution, check_finite, geometry, like_conv, pair
from norton_det.decompositions.input_metric import ChannelMetric
from norton_det.decompositions.tucker_fit import SWEEPS, TuckerFactors, fit_output, truncated, tucker_decompose
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import LeastSquares
from norton_det.registry import Registry
from norton_det.spec import Rank, is_rank


def _solve_als(weight: Tensor, rank: tuple[int, int], *, seed: int = 0) -> TuckerFactors:
    """Fit the kernel (O, I, Kh, Kw); there is one start, so that the seed has no effect."""
    check_finite(weight, "weights")
    return tucker_decompose(weight.detach().to("cpu", torch.float64).flatten(2), rank)


SOLVERS: Registry[Any] = Registry("Tucker-2 solver")
SOLVERS.register("als", _solve_als)


class TuckerConv2d(Decomposition):
    """A convolution as a 1x1 (I -> r1), a k x k core (r1 -> r2) and a 1x1 (r2 -> O), and a bias.

    Args:
        conv: the convolution that the block replaces: its geometry, bias, device and dtype; its weights are ignored.
        rank: (r1, r2), or one number for both, limited to the numbers of channels.

    Raises:
        UsageError: ``conv`` is grouped, or a rank below 1.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> block = nd.TuckerConv2d.from_conv(torch.nn.Conv2d(64, 128, 3, padding=1), (16, 24))
        >>> block(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 128, 32, 32])
    """

    rank: tuple[int, int]
    implementations: ClassVar[tuple[str, ...]] = ("factored", "dense")
    """Three convolutions; one dense one."""
    solvers: ClassVar[Registry[Any]] = SOLVERS
    rank_is_width: ClassVar[bool] = True

    def __init__(self, conv: nn.Conv2d, rank: Rank) -> None:
        super().__init__()
        self.rank = self.rank_for(conv, rank)
        self.implementation = "factored"
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        options: dict[str, Any] = {"bias": False, "device": conv.weight.device, "dtype": conv.weight.dtype}
        self.reduce = nn.Conv2d(conv.in_channels, self.rank[0], 1, **options)
        self.core = nn.Conv2d(self.rank[0], self.rank[1], pair(conv.kernel_size), **geometry(conv), **options)
        self.expand = nn.Conv2d(self.rank[1], conv.out_channels, 1, **options)
        self.bias = None if conv.bias is None else nn.Parameter(torch.zeros_like(conv.bias))

    @classmethod
    def rank_for(cls, layer: DenseLayer, rank: Rank) -> tuple[int, int]:
        """Return (r1, r2), limited to the numbers of channels.

        Raises:
            UsageError: ``layer`` is grouped or linear, or a rank below 1.
        """
        conv = as_convolution(layer, "Tucker")
        if not is_rank(rank):
            raise UsageError(f"rank is {rank}; expected one or two numbers of at least 1 for a Tucker block")
        inner, outer = rank if isinstance(rank, tuple) else (rank, rank)
        return min(inner, conv.in_channels), min(outer, conv.out_channels)

    @classmethod
    def choices(cls, layer: DenseLayer) -> list[Rank]:
        """Return 1 to 7 eighths of the input and of the output channels, rounded up."""
        conv = as_convolution(layer, "Tucker")
        eighths = [(-(-conv.in_channels * n // 8), -(-conv.out_channels * n // 8)) for n in range(1, 8)]
        return list(dict.fromkeys(eighths))

    @staticmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights; the core strides."""
        inner, outer = rank if isinstance(rank, tuple) else (rank, rank)
        reduce, core, expand = width_in * inner, inner * outer * kernel[0] * kernel[1], outer * width_out
        macs = reduce * inputs[0] * inputs[1] + (core + expand) * outputs[0] * outputs[1]
        return macs, reduce + core + expand

    @staticmethod
    def between(width_out: Any, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, ...]:
        """Return the elements of the core's input and output."""
        inner, outer = rank if isinstance(rank, tuple) else (rank, rank)
        return inner * inputs[0] * inputs[1], outer * outputs[0] * outputs[1]

    @classmethod
    def like(cls, layer: DenseLayer, rank: Rank) -> Self:
        """Return an unfitted block for ``layer``."""
        return cls(as_convolution(layer, "Tucker"), rank)

    def refit(
        self, regression: LeastSquares, *, seed: int = 0, sweeps: int | None = None, second_start: bool = True
    ) -> None:
        """Lower the output error, summed over the filters.

        See :func:`~norton_det.decompositions.tucker_fit.fit_output`.
        """
        self._write(fit_output(regression, self._factors(), sweeps or SWEEPS, second_start))

    @classmethod
    def estimates(
        cls, layer: DenseLayer, metric: ChannelMetric, ranks: Sequence[Rank], *, seed: int = 0
    ) -> Iterator[Tensor]:
        """Yield the weights of truncated decompositions in the metric of the input channels."""
        conv = as_convolution(layer, "Tucker")
        mixed = metric.mix_channels(conv.weight.detach().cpu().double().flatten(1))
        for factors in truncated(mixed, [cls.rank_for(conv, rank) for rank in ranks]):
            yield factors._replace(u=metric.unmix_channels(factors.u)).reconstruct().flatten(1)

    @torch.no_grad()
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number."""
        self.expand.weight.mul_(scale.to(self.expand.weight).view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W'), as ``nn.Conv2d`` would."""
        if torch.jit.is_scripting() or self.implementation == "factored":  # type: ignore[attr-defined]
            return F.conv2d(self.core(self.reduce(x)), self.expand.weight, self.bias)
        return self._dense(x)

    @torch.jit.unused
    def _dense(self, x: Tensor) -> Tensor:
        """Compute as one convolution; scripts of torch have the factored one."""
        dense: Tensor = self.core._conv_forward(x, self.kernel(), self.bias)
        return dense

    def kernel(self) -> Tensor:
        """Return the kernel (O, I, Kh, Kw), differentiable by the factors."""
        u, v = self.reduce.weight.flatten(1), self.expand.weight.flatten(1)
        return torch.einsum("ot,tshw,si->oihw", v, self.core.weight, u)

    def to_dense(self) -> nn.Conv2d:
        """Return the convolution with the reconstructed kernel; outputs agree up to rounding."""
        kernel = self._factors().reconstruct().unflatten(2, pair(self.core.kernel_size)).to(self.core.weight)
        return like_conv(self.core, kernel, self.bias, 1).train(self.training)

    def geometry(self) -> dict[str, Any]:
        """Return stride, padding, dilation and padding mode of the convolution that the block replaces."""
        return geometry(self.core)

    def factors(self) -> None:
        """Return None: all filters share U and G, so that criteria that need factors do not apply."""
        return

    def term_energy(self) -> Tensor:
        """Return each filter's ``||W||^2``: in orthonormal bases there is no degeneracy."""
        return self._factors().reconstruct().flatten(1).square().sum(1)

    def _factors(self) -> TuckerFactors:
        u, g, v = (part.weight.detach().cpu().double() for part in (self.reduce, self.core, self.expand))
        return TuckerFactors(u.flatten(1).mT, g.flatten(2), v.flatten(1))

    @torch.no_grad()
    def _write(self, factors: TuckerFactors) -> None:
        # G, which has the norm of the kernel, may be beyond the dtype where no weight is; V is far below 1 then.
        largest = torch.finfo(self.core.weight.dtype).max / 2
        excess = (factors.g.abs().max() / largest).clamp(min=1)
        self.reduce.weight.copy_(factors.u.mT[:, :, None, None])
        self.core.weight.copy_((factors.g / excess).unflatten(2, pair(self.core.kernel_size)))
        self.expand.weight.copy_((factors.v * excess)[:, :, None, None])
        written = torch.cat([part.flatten() for part in self._factors()])
        check_finite(written.unsqueeze(0), f"factors in {self.core.weight.dtype}")

    def extra_repr(self) -> str:
        """Show the geometry of the convolution that the block replaces, and the rank."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={pair(self.core.kernel_size)}, rank={self.rank}"


DECOMPOSITIONS.register("tucker2", TuckerConv2d)


@narrow.register
def _(layer: TuckerConv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    narrow(layer.reduce, inputs, None)
    narrow(layer.expand, None, outputs)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.reduce.in_channels, layer.expand.out_channels
