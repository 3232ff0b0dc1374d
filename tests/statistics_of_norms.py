"""Batch norms with statistics, shared by the tests of deployment."""

import torch
from torch import nn

from norton_det.channels.narrow import NORMS


def with_statistics(net: nn.Module) -> nn.Module:
    """Give batch norms statistics as if they had been trained."""
    for module in net.modules():
        if isinstance(module, NORMS):
            values = (module.weight, module.bias, module.running_mean, module.running_var)
            for tensor in (value for value in values if value is not None):
                tensor.data = torch.rand_like(tensor) + 0.5
    return net.eval()
