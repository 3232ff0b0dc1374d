"""The equal implementations of layers for inference, as plain modules of torch.

Those of a CP block all compute the convolution with the kernel ``sum_r a o b o c``; they differ in what is multiplied
out beforehand. Another kind of layer registers its own implementations at :func:`implementations_of`.
"""

import copy
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions.base import Decomposition
from norton_det.decompositions.conv import like_conv, plain
from norton_det.decompositions.cp import CPConv2d, sum_terms
from norton_det.decompositions.tucker import TuckerConv2d
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


def _depthwise(block: CPConv2d) -> nn.Module:
    """A 1x1, a depthwise k x k convolution and a sum."""
    kernel = block.by_terms(block.vertical.weight * block.horizontal.weight)
    first = like_conv(block.pointwise, block.by_terms(block.pointwise.weight), None, groups=1)
    return _summed(block, first, like_conv(block.to_dense(), kernel, _bias_of_terms(block), len(kernel)))


def _merged(block: CPConv2d) -> nn.Module:
    """A 1x1 and one grouped k x k convolution, whose groups are the filters' terms."""
    kernel = (block.vertical.weight * block.horizontal.weight).view(-1, block.rank, *block.kernel_size)
    return nn.Sequential(plain(block.pointwise), like_conv(block.to_dense(), kernel, block.bias, len(kernel)))


def _factored_tucker(block: TuckerConv2d) -> nn.Module:
    """Three convolutions."""
    last = like_conv(block.expand, block.expand.weight, block.bias, groups=1)
    return nn.Sequential(plain(block.reduce), plain(block.core), last)


def _dense(block: Decomposition) -> nn.Module:
    """One k x k convolution."""
    return block.to_dense()


CP: Registry[Callable[[CPConv2d], nn.Module]] = Registry("implementation")
for _name, _expansion in (
    ("factored", _factored_cp),
    ("depthwise", _depthwise),
    ("merged", _merged),
    ("dense", _dense),
):
    CP.register(_name, _expansion)
TUCKER2: Registry[Callable[[TuckerConv2d], nn.Module]] = Registry("implementation")
TUCKER2.register("factored", _factored_tucker)
TUCKER2.register("dense", _dense)
DENSE_ONLY: Registry[Callable[[Decomposition], nn.Module]] = Registry("implementation")
DENSE_ONLY.register("dense", _dense)
NO_IMPLEMENTATIONS: Registry[Callable[[Any], nn.Module]] = Registry("implementation")


@singledispatch
def implementations_of(layer: nn.Module) -> Registry[Callable[[Any], nn.Module]]:
    """Return the equal implementations of a layer, chosen by its type: none, if it is to stay as it is."""
    return NO_IMPLEMENTATIONS


@implementations_of.register
def _(block: Decomposition) -> Registry[Callable[[Any], nn.Module]]:
    return DENSE_ONLY  # what every kind has, whatever other implementations it registers


@implementations_of.register
def _(block: CPConv2d) -> Registry[Callable[[Any], nn.Module]]:
    return CP


@implementations_of.register
def _(block: TuckerConv2d) -> Registry[Callable[[Any], nn.Module]]:
    return TUCKER2


def expand(block: nn.Module, implementation: str) -> nn.Module:
    """Return a module that computes what ``block`` does, its weights multiplied out as ``implementation`` says.

    Raises:
        UsageError: an unknown implementation.
    """
    with torch.no_grad():
        return implementations_of(block)[implementation](block).train(block.training).requires_grad_(False)


def _summed(block: CPConv2d, *layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, *([SumTerms(block.rank)] if block.rank > 1 else []))


def _bias_of_terms(block: CPConv2d) -> Tensor | None:
    """Return a bias (O * R,) whose sum over the terms is the block's: the first term has all of it."""
    if block.bias is None:
        return None
    return torch.cat([block.bias, block.bias.new_zeros(block.out_channels * (block.rank - 1))])


def with_class(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Return a function that returns a layer with the same parameters as another class of the same layout."""

    def changed(layer: nn.Module) -> nn.Module:
        new = copy.copy(layer)  # with its parameters, and hooks if there are any
        new.__class__ = kind
        return new

    return changed


def itself(layer: nn.Module) -> nn.Module:
    """Return ``layer``: the implementation that it has."""
    return layer
