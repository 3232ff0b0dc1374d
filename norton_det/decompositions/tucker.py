"""Tucker-2: a convolution whose kernel has few dimensions over its input and over its output channels.

``W[o, i, p] = sum_st V[o, t] G[t, s, p] U[i, s]`` for the places p of the kernel: a 1x1 convolution I -> r1 (U), a
k x k core r1 -> r2 (G) and a 1x1 r2 -> O (V) (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast
and Low Power Mobile Applications", arXiv:1511.06530). The factors are found by higher-order orthogonal iteration (De
Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order tensors",
2000), and to keep the layer's output by alternating least squares in the metric of its inputs.
"""

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.narrow import narrow, select_
from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition, Size
from norton_det.decompositions.conv import like_conv
from norton_det.decompositions.tucker_fit import SWEEPS, TuckerFactors, fit_output, tucker_decompose
from norton_det.errors import DataError, UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.spec import Rank, is_rank


class TuckerConv2d(Decomposition):
    """A convolution as a 1x1 (I -> r1), a k x k core (r1 -> r2) and a 1x1 (r2 -> O), and a bias.

    Args:
        conv: the convolution for which it stands: geometry, bias, device and dtype; its weights are not looked at.
        rank: (r1, r2), or one number for both, at most as many as there are channels.

    Raises:
        UsageError: ``conv`` is grouped, or a rank below 1.
    """

    rank: tuple[int, int]
    implementations: ClassVar[tuple[str, ...]] = ("factored", "dense")

    def __init__(self, conv: nn.Conv2d, rank: Rank) -> None:
        super().__init__()
        if conv.groups != 1:
            raise UsageError(f"a convolution with groups={conv.groups} has no Tucker block; expected groups=1")
        self.rank = self.rank_for(conv, rank)
        self.implementation = "factored"
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
        inner, outer = rank if isinstance(rank, tuple) else (rank, rank)
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
        if self.implementation == "dense":
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


def _size(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.kernel_size[0], conv.kernel_size[-1]


@narrow.register
def _(layer: TuckerConv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    narrow(layer.reduce, inputs, None)
    narrow(layer.expand, None, outputs)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.reduce.in_channels, layer.expand.out_channels
