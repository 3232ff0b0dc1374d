"""Equal implementations of decomposed layers, as plain modules of torch.

Those of a CP block all compute the convolution with the kernel ``sum_r a o b o c``; they differ in what is multiplied
out beforehand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions.base import Decomposition
from norton_det.decompositions.conv import like_conv, like_layer, plain, sum_terms
from norton_det.decompositions.cp import CPConv2d
from norton_det.decompositions.svd import LowRank
from norton_det.decompositions.tucker import TuckerConv2d
from norton_det.deployment.implementations.base import Implementations, implementations_of
from norton_det.deployment.implementations.linear import CONVOLVED
from norton_det.registry import Registry


class SumTerms(nn.Module):
    """The sum over the terms of each filter: (N, R * O, H, W), term by term, -> (N, O, H, W).

    Args:
        rank: R.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        """Add up."""
        return sum_terms(x, self.rank)


def _factored_cp(block: CPConv2d) -> nn.Module:
    """Three convolutions and a sum."""
    first, second, third = (
        like_conv(conv, block.by_terms(conv.weight), bias, conv.groups)
        for conv, bias in ((block.pointwise, None), (block.vertical, None), (block.horizontal, _bias_of_terms(block)))
    )
    return _summed(block, first, second, third)


def _depthwise_cp(block: CPConv2d) -> nn.Module:
    """A 1x1, a depthwise k x k convolution and a sum."""
    kernel = block.by_terms(block.vertical.weight * block.horizontal.weight)
    first = like_conv(block.pointwise, block.by_terms(block.pointwise.weight), None, groups=1)
    return _summed(block, first, like_conv(block.to_dense(), kernel, _bias_of_terms(block), len(kernel)))


def _merged_cp(block: CPConv2d) -> nn.Module:
    """A 1x1 and one grouped k x k convolution, whose groups are the filters' terms."""
    kernel = (block.vertical.weight * block.horizontal.weight).view(-1, block.rank, *block.kernel_size)
    return nn.Sequential(plain(block.pointwise), like_conv(block.to_dense(), kernel, block.bias, len(kernel)))


def _summed(block: CPConv2d, *layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, *([SumTerms(block.rank)] if block.rank > 1 else []))


def _bias_of_terms(block: CPConv2d) -> Tensor | None:
    """Return a bias (O * R,) whose sum over the terms is the block's: the first term has all of it."""
    if block.bias is None:
        return None
    return torch.cat([block.bias, block.bias.new_zeros(block.out_channels * (block.rank - 1))])


def _factored_tucker(block: TuckerConv2d) -> nn.Module:
    """Three convolutions."""
    last = like_conv(block.expand, block.expand.weight, block.bias, groups=1)
    return nn.Sequential(plain(block.reduce), plain(block.core), last)


def _factored_svd(block: LowRank) -> nn.Module:
    """Two layers."""
    first, last = block.reduce, block.expand
    return nn.Sequential(like_layer(first, first.weight, None), like_layer(last, last.weight, block.bias))


def _convolved(make: Callable[[Any], nn.Module]) -> Callable[[LowRank], nn.Module]:
    """Return a function that makes the same of a block, with its linear layers as convolutions."""

    def made(block: LowRank) -> nn.Module:
        module = make(block)
        return nn.Sequential(*map(CONVOLVED, module)) if isinstance(module, nn.Sequential) else CONVOLVED(module)

    return made


def _dense(block: Decomposition) -> nn.Module:
    """One convolution or linear layer."""
    return block.to_dense()


CP: Implementations = Registry("implementation")
CP.register("factored", _factored_cp)
CP.register("depthwise", _depthwise_cp)
CP.register("merged", _merged_cp)
CP.register("dense", _dense)
TUCKER2: Implementations = Registry("implementation")
TUCKER2.register("factored", _factored_tucker)
TUCKER2.register("dense", _dense)
SVD: Implementations = Registry("implementation")
SVD.register("factored", _factored_svd)
SVD.register("dense", _dense)
SVD_LINEAR: Implementations = Registry("implementation")
SVD_LINEAR.register("factored", _factored_svd)
SVD_LINEAR.register("factored_convolution", _convolved(_factored_svd))
SVD_LINEAR.register("dense", _dense)
SVD_LINEAR.register("dense_convolution", _convolved(_dense))
DENSE_ONLY: Implementations = Registry("implementation")
DENSE_ONLY.register("dense", _dense)


@implementations_of.register
def _(block: Decomposition) -> Implementations:
    return DENSE_ONLY  # what every kind has, whatever other implementations it registers


@implementations_of.register
def _(block: CPConv2d) -> Implementations:
    return CP


@implementations_of.register
def _(block: TuckerConv2d) -> Implementations:
    return TUCKER2


@implementations_of.register
def _(block: LowRank) -> Implementations:
    return SVD_LINEAR if block.is_linear else SVD
