"""Equal implementations of linear layers."""

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.deployment.implementations.base import (
    NO_IMPLEMENTATIONS,
    Implementations,
    implementations_of,
    itself,
    with_class,
)
from norton_det.registry import Registry


@torch.fx.wrap  # one operation of a graph: it asks whether there are rows
def convolved_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply rows (..., I) by a weight (O, I), as a convolution over an image whose positions are the rows."""
    if not input.numel():
        return F.linear(input, weight, bias)
    image = input.reshape(-1, weight.shape[1]).t()[None, :, :, None]  # (1, I, rows, 1), channels_last as it lies
    outputs = F.conv2d(image, weight[:, :, None, None], bias)[0, :, :, 0].t()
    return outputs.reshape(input.shape[:-1] + weight.shape[:1])


class ConvolvedLinear(nn.Linear):
    """A linear layer as a 1x1 convolution over an image whose spatial positions are the rows: nothing is copied."""

    def forward(self, input: Tensor) -> Tensor:  # torch's own name: a caller may use it
        """Multiply: (..., I) -> (..., O)."""
        return convolved_linear(input, self.weight, self.bias)


CONVOLVED = with_class(ConvolvedLinear)
LINEAR: Implementations = Registry("implementation")
LINEAR.register("linear", itself)
LINEAR.register("convolution", CONVOLVED)


@implementations_of.register
def _(layer: nn.Linear) -> Implementations:
    return LINEAR if type(layer) is nn.Linear else NO_IMPLEMENTATIONS  # a subclass may compute something else
