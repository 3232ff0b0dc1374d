"""The CP block: a convolution whose every filter is a sum of R separable terms."""

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.narrow import narrow, select_
from norton_det.decompositions.base import DECOMPOSITIONS, IMPLEMENTATIONS, Decomposition, Size
from norton_det.decompositions.cp_als import CPFactors, cp_decompose
from norton_det.decompositions.cp_output_fit import SWEEPS, fit_output
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.spec import Rank


class CPConv2d(Decomposition):
    """A convolution with the kernel ``W[o, i, h, w] = sum_r a[o, i, r] b[o, h, r] c[o, w, r]``, never formed.

    A 1x1 convolution I -> O * R (the a, channels ordered filter by filter), a depthwise Kh x 1 (b), a depthwise 1 x Kw
    (c) and a sum over r: the CPDBlock of NORTON (Pham, Zniyed, Nguyen, 2023). The arguments are those of
    ``nn.Conv2d``, but for ``groups``.

    The same function, with the same parameters and gradients, has four implementations (see :attr:`implementations` and
    :func:`norton_det.decompositions.base.set_implementation`). Fewer multiply-accumulates are not always less time.

    Args:
        in_channels: I.
        out_channels: O, the number of filters.
        kernel_size: (Kh, Kw).
        rank: R.
        stride: the vertical convolution strides the rows, the horizontal one the columns.
        padding: numbers, "same" or "valid".
        dilation: of the two depthwise convolutions.
        bias: whether one is added after the sum.
        padding_mode: as in ``nn.Conv2d``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        UsageError: rank below 1.
    """

    rank: int
    implementations: ClassVar[tuple[str, ...]] = IMPLEMENTATIONS
    """Three convolutions and a sum; a 1x1, a depthwise k x k and a sum; a 1x1 and a grouped k x k; one dense one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UsageError(f"rank is {rank}; expected at least 1")
        (kh, kw), (sh, sw), (dh, dw) = _pair(kernel_size), _pair(stride), _pair(dilation)
        vertical_padding, horizontal_padding = _split_padding(padding)
        terms = out_channels * rank
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.implementation = "factored"
        self.pointwise = nn.Conv2d(in_channels, terms, 1, bias=False, device=device, dtype=dtype)
        self.vertical = nn.Conv2d(
            terms, terms, (kh, 1), (sh, 1), vertical_padding, (dh, 1), terms, False, padding_mode, device, dtype
        )
        self.horizontal = nn.Conv2d(
            terms, terms, (1, kw), (1, sw), horizontal_padding, (1, dw), terms, False, padding_mode, device, dtype
        )
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(Kh, Kw)."""
        return self.vertical.kernel_size[0], self.horizontal.kernel_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W'), as ``nn.Conv2d`` would."""
        if self.implementation == "dense":
            return self._convolve(x, self.kernel(), self.bias, groups=1)
        if self.implementation == "merged":
            return self._convolve(self.pointwise(x), self._merged_kernel(), self.bias, groups=self.out_channels)
        y: Tensor
        if self.implementation == "depthwise":
            y = F.conv2d(x, self.by_terms(self.pointwise.weight))
            kernel = self.by_terms(self.vertical.weight * self.horizontal.weight)
            y = sum_terms(self._convolve(y, kernel, None, groups=len(kernel)), self.rank)
        else:
            y = self.horizontal(self.vertical(self.pointwise(x)))
            y = y.unflatten(-3, (self.out_channels, self.rank)).sum(-3) if self.rank > 1 else y
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
        vertical, horizontal = self.vertical, self.horizontal
        stride = (vertical.stride[0], horizontal.stride[1])
        dilation = (vertical.dilation[0], horizontal.dilation[1])
        if vertical.padding_mode == "zeros" and not isinstance(vertical.padding, str):
            padding = (vertical.padding[0], int(horizontal.padding[1]))
            return F.conv2d(x, kernel, bias, stride, padding, dilation, groups)
        sides = zip(vertical._reversed_padding_repeated_twice, horizontal._reversed_padding_repeated_twice, strict=True)
        mode = "constant" if vertical.padding_mode == "zeros" else vertical.padding_mode
        padded = F.pad(x, [a + b for a, b in sides], mode=mode)
        return F.conv2d(padded, kernel, bias, stride, 0, dilation, groups)

    def reset_parameters(self) -> None:
        """Set the bias to zero; the convolutions inside reset themselves."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def rank_for(cls, conv: nn.Conv2d, rank: Rank) -> int:
        """Return ``rank``.

        Raises:
            UsageError: it is not one positive number.
        """
        if not isinstance(rank, int) or rank < 1:
            raise UsageError(f"rank is {rank}; expected one number of at least 1 for a CP block")
        return rank

    @classmethod
    def choices(cls, conv: nn.Conv2d) -> list[Rank]:
        """Return 1 to 8, or to what is below an exact decomposition."""
        kh, kw = _pair(conv.kernel_size)
        return list(range(1, min(9, kh * kw)))

    @staticmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights; the vertical convolution strides before the horizontal one."""
        (kh, kw), (h, w), (ho, wo) = kernel, inputs, outputs
        terms = width_out * rank
        return terms * (width_in * h * w + kh * ho * w + kw * ho * wo), terms * (width_in + kh + kw)

    @classmethod
    def like(cls, conv: nn.Conv2d, rank: Rank) -> Self:
        """Return an unfitted block with the geometry, bias, device and dtype of ``conv``.

        Raises:
            UsageError: ``conv`` is grouped, or rank below 1.
        """
        if conv.groups != 1:
            raise UsageError(f"a convolution with groups={conv.groups} has no CP block; expected groups=1")
        return cls(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            cls.rank_for(conv, rank),
            _pair(conv.stride),
            conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
            _pair(conv.dilation),
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, rank: Rank, *, seed: int = 0) -> Self:
        """Return the block with the best rank-R approximation found for each filter of ``conv``.

        The fit is in float64 on the CPU, whatever the dtype and device of ``conv``; see :func:`cp_decompose`.

        Raises:
            UsageError: ``conv`` is grouped, or rank below 1.
            DataError: weights that are not finite; the message names the filters.
        """
        block = cls.like(conv, rank)
        factors = cp_decompose(conv.weight, block.rank, seed=seed)
        block._write(factors)
        if block.bias is not None and conv.bias is not None:
            with torch.no_grad():
                block.bias.copy_(conv.bias)
        return block.train(conv.training)

    @torch.no_grad()
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number."""
        self.horizontal.weight.mul_(scale.to(self.horizontal.weight).repeat_interleave(self.rank).view(-1, 1, 1, 1))

    def refit(self, regression: Regression, *, seed: int = 0, sweeps: int | None = None) -> None:
        """Bring the output of each filter nearer to what is wanted; see :func:`fit_output`."""
        self._write(fit_output(regression, self.factors(), seed=seed, sweeps=sweeps or SWEEPS))

    @torch.no_grad()
    def _write(self, factors: CPFactors) -> None:
        self.pointwise.weight.copy_(factors.a.mT.flatten(0, 1)[:, :, None, None])
        self.vertical.weight.copy_(factors.b.mT.flatten(0, 1)[:, None, :, None])
        self.horizontal.weight.copy_(factors.c.mT.flatten(0, 1)[:, None, None, :])

    def factors(self) -> CPFactors:
        """Return the factor matrices as float64: (O, I, R), (O, Kh, R), (O, Kw, R)."""
        weights = (self.pointwise.weight, self.vertical.weight, self.horizontal.weight)
        return CPFactors(
            *(w.detach().double().flatten(1).unflatten(0, (self.out_channels, self.rank)).mT for w in weights)
        )

    def to_dense(self) -> nn.Conv2d:
        """Return the convolution with the reconstructed kernel; outputs agree up to rounding."""
        vertical, horizontal = self.vertical, self.horizontal
        rows, columns = vertical.padding, horizontal.padding
        padding = rows if isinstance(rows, str) or isinstance(columns, str) else (rows[0], columns[1])
        conv: nn.Conv2d = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=(vertical.stride[0], horizontal.stride[1]),
            padding=padding,
            dilation=(vertical.dilation[0], horizontal.dilation[1]),
            bias=self.bias is not None,
            padding_mode=vertical.padding_mode,
            device=vertical.weight.device,
            dtype=vertical.weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.factors().reconstruct())
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def term_energy(self) -> Tensor:
        """Return each filter's ``sum_r ||a_r||^2 ||b_r||^2 ||c_r||^2``, float64 of shape (O,)."""
        a, b, c = (factor.square().sum(1) for factor in self.factors())
        return (a * b * c).sum(1)

    def extra_repr(self) -> str:
        """Show the rank and the geometry that is stood for."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"


DECOMPOSITIONS.register("cp", CPConv2d)


@narrow.register
def _(layer: CPConv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    terms = None
    if outputs is not None:
        terms = (outputs.unsqueeze(1) * layer.rank + torch.arange(layer.rank)).flatten()
    narrow(layer.pointwise, inputs, terms)
    for depthwise in (layer.vertical, layer.horizontal):
        select_(depthwise, "weight", 0, terms)
        depthwise.in_channels = depthwise.out_channels = depthwise.groups = len(depthwise.weight)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.pointwise.in_channels, len(layer.pointwise.weight) // layer.rank


def sum_terms(x: Tensor, rank: int) -> Tensor:
    """Add up the terms of filters: (N, R * O, H, W), term by term, -> (N, O, H, W).

    In this order what is added lies together in every memory format; filter by filter it does not in channels_last.
    """
    first, *others = x.chunk(rank, -3)
    if not others:
        return first
    total = first + others[0]
    for term in others[1:]:
        total += term
    return total


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _split_padding(
    padding: int | tuple[int, int] | str,
) -> tuple[tuple[int, int] | str, tuple[int, int] | str]:
    if isinstance(padding, str):
        return padding, padding
    ph, pw = _pair(padding)
    return (ph, 0), (0, pw)
