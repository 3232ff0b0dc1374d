"""Equal implementations of linear layers."""

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


class ConvolvedLinear(nn.Linear):
    """A linear layer as a 1x1 convolution over an image whose spatial positions are the rows: nothing is copied."""

    def forward(self, input: Tensor) -> Tensor:  # torch's own name: a caller may use it
        """Multiply: (..., I) -> (..., O)."""
        if not input.numel():
            return super().forward(input)
        image = input.reshape(-1, self.in_features).t()[None, :, :, None]  # (1, I, rows, 1), channels_last as it lies
        outputs = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return outputs[0, :, :, 0].t().reshape(*input.shape[:-1], self.out_features)


LINEAR: Implementations = Registry("implementation")
LINEAR.register("linear", itself)
LINEAR.register("convolution", with_class(ConvolvedLinear))


@implementations_of.register
def _(layer: nn.Linear) -> Implementations:
    return LINEAR if type(layer) is nn.Linear else NO_IMPLEMENTATIONS  # a subclass may compute something else
