"""The layer of a CP block: what it computes, in four implementations."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.decompositions.base import IMPLEMENTATIONS
from norton_det.decompositions.conv import PaddingMode, Size, check_finite, conv_with, geometry, pair, sum_terms
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.errors import UsageError


class CPLayer(nn.Module):
    """The parameters and the forward pass of :class:`norton_det.decompositions.cp.CPConv2d`, with its arguments."""

    rank: int
    bias: Tensor | None
    implementations: ClassVar[tuple[str, ...]] = IMPLEMENTATIONS
    """Three convolutions and a sum; a 1x1, a depthwise k x k and a sum; a 1x1 and a grouped k x k; one dense one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Size,
        rank: int,
        stride: int | Size = 1,
        padding: int | Size | str = 0,
        dilation: int | Size = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UsageError(f"rank is {rank}; expected at least 1")
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel_size), pair(stride), pair(dilation)
        rows, columns = _split_padding(padding)
        terms = out_channels * rank
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.implementation = "factored"
        options: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.pointwise = nn.Conv2d(in_channels, terms, 1, **options)
        options |= {"groups": terms, "padding_mode": padding_mode}
        self.vertical = nn.Conv2d(terms, terms, (kh, 1), (sh, 1), rows, (dh, 1), **options)
        self.horizontal = nn.Conv2d(terms, terms, (1, kw), (1, sw), columns, (1, dw), **options)
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    @property
    def kernel_size(self) -> Size:
        """(Kh, Kw)."""
        return self.vertical.kernel_size[0], self.horizontal.kernel_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W'), as ``nn.Conv2d`` would."""
        if torch.jit.is_scripting() or self.implementation == "factored":  # type: ignore[attr-defined]
            y: Tensor = self.horizontal(self.vertical(self.pointwise(x)))
            y = y.unflatten(-3, [self.out_channels, self.rank]).sum(-3) if self.rank > 1 else y
            return y if self.bias is None else y + self.bias.view(-1, 1, 1)
        return self._multiplied_out(x)

    @torch.jit.unused
    def _multiplied_out(self, x: Tensor) -> Tensor:
        """Compute in one of the other implementations; scripts of torch have the factored one."""
        if self.implementation == "dense":
            return self._convolve(x, self.kernel(), self.bias, groups=1)
        if self.implementation == "merged":
            return self._convolve(self.pointwise(x), self._merged_kernel(), self.bias, groups=self.out_channels)
        y = F.conv2d(x, self.by_terms(self.pointwise.weight))
        kernel = self.by_terms(self.vertical.weight * self.horizontal.weight)
        y = sum_terms(self._convolve(y, kernel, None, groups=len(kernel)), self.rank)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def kernel(self) -> Tensor:
        """Return the kernel (O, I, Kh, Kw) that the factors stand for, differentiable by them."""
        a = self.pointwise.weight.view(self.out_channels, self.rank, self.in_channels)
        kernel: Tensor = (a.mT @ self._merged_kernel().flatten(2)).unflatten(-1, self.kernel_size)
        return kernel

    def by_terms(self, weight: Tensor) -> Tensor:
        """Return a weight (O * R, ...), which is ordered filter by filter, in the order of :func:`sum_terms`."""
        terms: Tensor = weight.unflatten(0, (self.out_channels, self.rank)).transpose(0, 1).flatten(0, 1)
        return terms

    def _merged_kernel(self) -> Tensor:
        """Return the outer products of b and c, of shape (O, R, Kh, Kw)."""
        return (self.vertical.weight * self.horizontal.weight).view(self.out_channels, self.rank, *self.kernel_size)

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve with the geometry of the vertical and the horizontal convolution together."""
        options = self.geometry()
        mode = options.pop("padding_mode")
        if mode != "zeros":
            sides = (conv._reversed_padding_repeated_twice for conv in (self.vertical, self.horizontal))
            x = F.pad(x, [sum(side) for side in zip(*sides, strict=True)], mode=mode)
            options["padding"] = 0
        return F.conv2d(x, kernel, bias, groups=groups, **options)

    def geometry(self) -> dict[str, Any]:
        """Return stride, padding, dilation and padding mode of the convolution that the block replaces."""
        vertical, horizontal = geometry(self.vertical), geometry(self.horizontal)
        return {
            name: value if isinstance(value, str) else (value[0], horizontal[name][1])
            for name, value in vertical.items()
        }

    def reset_parameters(self) -> None:
        """Set the bias to zero; the convolutions inside reset themselves."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number."""
        self.horizontal.weight.mul_(scale.to(self.horizontal.weight).repeat_interleave(self.rank).view(-1, 1, 1, 1))

    @torch.no_grad()
    def _write(self, factors: CPFactors) -> None:
        self.pointwise.weight.copy_(factors.a.mT.flatten(0, 1)[:, :, None, None])
        self.vertical.weight.copy_(factors.b.mT.flatten(0, 1)[:, None, :, None])
        self.horizontal.weight.copy_(factors.c.mT.flatten(0, 1)[:, None, None, :])
        written = torch.cat([factor.flatten(1) for factor in self.factors()], 1)
        check_finite(written, f"factors in {self.pointwise.weight.dtype}")

    def factors(self) -> CPFactors:
        """Return the factor matrices as float64: (O, I, R), (O, Kh, R), (O, Kw, R)."""
        weights = (self.pointwise.weight, self.vertical.weight, self.horizontal.weight)
        return CPFactors(
            *(w.detach().double().flatten(1).unflatten(0, (self.out_channels, self.rank)).mT for w in weights)
        )

    def to_dense(self) -> nn.Conv2d:
        """Return the convolution with the reconstructed kernel; outputs agree up to rounding."""
        kernel = self.factors().reconstruct().to(self.pointwise.weight)
        return conv_with(kernel, self.bias, **self.geometry()).train(self.training)

    def extra_repr(self) -> str:
        """Show the geometry of the convolution that the block replaces, and the rank."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"


def _split_padding(padding: int | Size | str) -> tuple[Size | str, Size | str]:
    """Return the padding of the vertical and of the horizontal convolution."""
    if isinstance(padding, str):
        return padding, padding
    rows, columns = pair(padding)
    return (rows, 0), (0, columns)
