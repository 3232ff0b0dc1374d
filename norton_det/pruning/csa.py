"""Cosine of subspace angles: the squared cosine of the largest principal angle of the mode-1 factors."""

from torch import Tensor

from norton_det.pruning.base import register_distance
from norton_det.pruning.subspace_angles import largest_principal_angle, spans_everything


def csa_similarity(factors: tuple[Tensor, ...]) -> Tensor:
    """Return cos^2 of the largest principal angle of the mode-1 factors: a similarity, float64 of shape (O, O), 0 to 1.

    Args:
        factors: each filter's factor matrix of each mode, of shapes (O, n_mode, R); the first is used.

    Example:
        >>> import torch
        >>> lines = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).unsqueeze(2)  # three filters of rank 1
        >>> csa_similarity((lines,)).round(decimals=3)
        tensor([[1.0000, 0.0000, 0.5000],
                [0.0000, 1.0000, 0.5000],
                [0.5000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    return largest_principal_angle(factors[0]).cos().square()


# 1 - cos^2, which would cancel.
register_distance(
    "csa",
    lambda factors: largest_principal_angle(factors[0]).sin().square(),
    tells_apart=lambda factors: not spans_everything(factors[0]),
)
