"""Variance-based distance of the mode-1 factors."""

import torch
from torch import Tensor

from norton_det.pruning.base import register_distance


def vbd_distance(factors: tuple[Tensor, ...]) -> Tensor:
    """Return ``var(x - y) / (var x + var y)`` of the flattened mode-1 factors, float64 of shape (O, O), 0 to 2.

    Two constant factors are at distance 0.

    Args:
        factors: each filter's factor matrix of each mode, of shapes (O, n_mode, R); the first is used.

    Example:
        >>> factor = torch.tensor([[1.0, 2.0], [2.0, 4.0], [2.0, 1.0]]).unsqueeze(2)  # three filters of rank 1
        >>> vbd_distance((factor,))
        tensor([[0.0000, 0.2000, 2.0000],
                [0.2000, 0.0000, 1.8000],
                [2.0000, 1.8000, 0.0000]], dtype=torch.float64)
    """
    x = factors[0].detach().to("cpu", torch.float64).flatten(1)
    centred = x - x.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    covariance = centred @ centred.T / x.shape[1]
    total = variance[:, None] + variance[None, :]
    distance = (total - 2 * covariance) / total.clamp(min=1e-300)
    return distance.clamp(min=0).fill_diagonal_(0)


register_distance("vbd", vbd_distance)
