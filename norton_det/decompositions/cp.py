"""The CP block: a convolution whose every filter is a sum of R separable terms."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from norton_det.channels.narrow import narrow, select_
from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.conv import DenseLayer, PaddingMode, Size, as_convolution, geometry, pair
from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.decompositions.cp_layer import CPLayer
from norton_det.decompositions.cp_output_fit import SWEEPS, fit_output
from norton_det.decompositions.cp_solvers import SOLVERS, Solver
from norton_det.decompositions.cp_tensors import factors_from_cp_tensors, factors_to_cp_tensors
from norton_det.decompositions.input_metric import ChannelMetric
from norton_det.errors import UsageError, shown
from norton_det.linalg.least_squares import LeastSquares
from norton_det.registry import Registry
from norton_det.spec import Rank

_MOST_OF_SMALL = 100  # rank of filters that have fewer weights
_ESTIMATE_ITERATIONS = 30  # of fits that are compared, not kept


class CPConv2d(CPLayer, Decomposition):
    """A convolution with the kernel ``W[o, i, h, w] = sum_r a[o, i, r] b[o, h, r] c[o, w, r]``, which is never formed.

    A 1x1 convolution I -> O * R (the a, channels ordered filter by filter), a depthwise Kh x 1 (b), a depthwise 1 x Kw
    (c) and a sum over r: the CPDBlock of NORTON (Pham, Zniyed, Nguyen, 2023). The arguments are those of
    ``nn.Conv2d``, except for ``groups``.

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

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> conv = torch.nn.Conv2d(64, 128, 3, stride=2, padding=1)
        >>> block = nd.CPConv2d.from_conv(conv, rank=2)
        >>> block(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 128, 16, 16])
        >>> sum(p.numel() for p in block.parameters()), sum(p.numel() for p in conv.parameters())
        (18048, 73856)
    """

    rank: int
    solvers: ClassVar[Registry[Solver]] = SOLVERS

    @classmethod
    def rank_for(cls, layer: DenseLayer, rank: Rank) -> int:
        """Return ``rank``.

        Raises:
            UsageError: ``layer`` is grouped or linear, or ``rank`` is not one positive number, or above 100 and
                the number of weights of a filter.
        """
        conv = as_convolution(layer, "CP")
        if not isinstance(rank, int) or rank < 1:
            raise UsageError(f"rank is {rank}; expected one number of at least 1 for a CP block")
        kh, kw = pair(conv.kernel_size)
        if rank > (most := max(conv.in_channels * kh * kw, _MOST_OF_SMALL)):
            raise UsageError(f"rank is {shown(rank)}; expected at most {most:,} for filters of this size")
        return rank

    @classmethod
    def choices(cls, layer: DenseLayer) -> list[Rank]:
        """Return 1 to 8, or to what is below an exact decomposition."""
        kh, kw = pair(as_convolution(layer, "CP").kernel_size)
        return list(range(1, min(9, kh * kw)))

    @staticmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights; the vertical convolution strides before the horizontal one."""
        (kh, kw), (h, w), (ho, wo) = kernel, inputs, outputs
        terms = width_out * rank
        return terms * (width_in * h * w + kh * ho * w + kw * ho * wo), terms * (width_in + kh + kw)

    @staticmethod
    def between(width_out: Any, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, ...]:
        """Return the elements of what the three convolutions write, which is summed over the terms."""
        (h, w), (ho, wo) = inputs, outputs
        return tuple(width_out * rank * positions for positions in (h * w, ho * w, ho * wo))

    @classmethod
    def like(cls, layer: DenseLayer, rank: Rank) -> Self:
        """Return an unfitted block with the geometry, bias, device and dtype of ``layer``.

        Raises:
            UsageError: ``layer`` is grouped or linear, or rank below 1.
        """
        conv = as_convolution(layer, "CP")
        options = geometry(conv) | {"device": conv.weight.device, "dtype": conv.weight.dtype}
        kernel, rank = pair(conv.kernel_size), cls.rank_for(conv, rank)
        return cls(conv.in_channels, conv.out_channels, kernel, rank, bias=conv.bias is not None, **options)

    @classmethod
    def from_cp_tensors(
        cls,
        cp_tensors: Iterable[Any],
        *,
        bias: Tensor | None = None,
        stride: int | Size = 1,
        padding: int | Size | str = 0,
        dilation: int | Size = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> Self:
        """Return the block of one tensorly ``CPTensor`` a filter; its device and dtype are those of the first filter.

        Args:
            cp_tensors: for each filter its weights (R,) or None and its factors [(I, R), (Kh, R), (Kw, R)], as tensors
                or arrays. The weights are multiplied into the first factor.
            bias: of shape (O,).
            stride: as in ``nn.Conv2d``.
            padding: likewise.
            dilation: likewise.
            padding_mode: likewise.

        Raises:
            UsageError: there is no filter, or a shape does not fit; the message names the filter and the shapes.
            DataError: factors that are not finite; the message names the filters.

        Example:
            >>> import norton_det as nd
            >>> from tensorly.random import random_cp
            >>> block = nd.CPConv2d.from_cp_tensors([random_cp((16, 3, 3), rank=2) for _ in range(8)], padding=1)
            >>> block.in_channels, block.out_channels, block.kernel_size, block.rank
            (16, 8, (3, 3), 2)
        """
        factors = factors_from_cp_tensors(cp_tensors)
        out, inputs, rank = factors.a.shape
        if bias is not None and bias.shape != (out,):
            raise UsageError(f"bias has shape {tuple(bias.shape)}; expected ({out},), a number for each filter")
        block = cls(
            inputs,
            out,
            (factors.b.shape[1], factors.c.shape[1]),
            rank,
            stride,
            padding,
            dilation,
            bias is not None,
            padding_mode,
            factors.a.device,
            factors.a.dtype,
        )
        block._write(factors)
        block._write_bias(bias)
        return block

    def to_cp_tensors(self) -> list[Any]:
        """Return the factors as one tensorly ``CPTensor`` a filter; :meth:`from_cp_tensors` is the inverse.

        Each has weights of one (R,) and the factors [(I, R), (Kh, R), (Kw, R)]: copies, as tensors on the device and of
        the dtype of the block, for tensorly's PyTorch backend.

        Example:
            >>> import norton_det as nd
            >>> import tensorly as tl
            >>> import torch
            >>> block = nd.CPConv2d(16, 8, 3, rank=2)
            >>> with tl.backend_context("pytorch"):
            ...     kernel = torch.stack([tl.cp_to_tensor(filter_) for filter_ in block.to_cp_tensors()])
            >>> torch.allclose(kernel, block.kernel(), atol=1e-6)
            True
        """
        return factors_to_cp_tensors(CPFactors(*(f.to(self.pointwise.weight.dtype) for f in self.factors())))

    def refit(
        self, regression: LeastSquares, *, seed: int = 0, sweeps: int | None = None, second_start: bool = True
    ) -> None:
        """Lower the output error of each filter; see :func:`~norton_det.decompositions.cp_output_fit.fit_output`."""
        options: dict[str, Any] = {"seed": seed, "sweeps": sweeps or SWEEPS, "second_start": second_start}
        start = CPFactors(*(factor.cpu() for factor in self.factors()))  # where the regression is
        self._write(fit_output(regression, start, **options))

    @classmethod
    def estimates(
        cls, layer: DenseLayer, metric: ChannelMetric, ranks: Sequence[Rank], *, seed: int = 0
    ) -> Iterator[Tensor]:
        """Yield the weights of decompositions in the metric of the input channels, from one start."""
        conv = as_convolution(layer, "CP")
        mixed = metric.mix_channels(conv.weight.detach().cpu().double().flatten(1))
        mixed = mixed.unflatten(2, pair(conv.kernel_size))
        for rank in ranks:
            options = {"starts": 1, "max_iterations": _ESTIMATE_ITERATIONS}
            kernel = cp_decompose(mixed, cls.rank_for(conv, rank), seed=seed, **options).reconstruct()
            yield metric.unmix_channels(kernel.flatten(2)).flatten(1)

    def term_energy(self) -> Tensor:
        """Return each filter's ``sum_r ||a_r||^2 ||b_r||^2 ||c_r||^2``, float64 of shape (O,)."""
        a, b, c = (factor.square().sum(1) for factor in self.factors())
        return (a * b * c).sum(1)


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
