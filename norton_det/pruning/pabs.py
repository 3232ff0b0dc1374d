"""PABS, principal angles between subspaces: the criterion of NORTON.

It says nothing where the factors of all filters span everything in every mode, as those of a stem of three channels do
from rank 3 on: all angles are 0. The norm decides there, and between filters at equal distances.
"""

import torch
from torch import Tensor

from norton_det.pruning.base import register_distance
from norton_det.pruning.subspace_angles import largest_principal_angle, spans_everything


def pabs_distance(factors: tuple[Tensor, ...]) -> Tensor:
    """Return the sum over the modes of the largest principal angle between the factors' column spaces.

    Args:
        factors: each filter's factor matrix of each mode, of shapes (O, n_mode, R).

    Returns:
        Angles in radians, float64 of shape (O, O), 0 (identical spaces) to modes * pi / 2 (orthogonal ones).

    Example:
        >>> lines = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).unsqueeze(2)  # three filters of rank 1
        >>> pabs_distance((lines,)).rad2deg().round(decimals=3)
        tensor([[ 0., 90., 45.],
                [90.,  0., 45.],
                [45., 45.,  0.]], dtype=torch.float64)
    """
    total = torch.zeros(len(factors[0]), len(factors[0]), dtype=torch.float64)
    for factor in factors:
        total += largest_principal_angle(factor)
    return total


register_distance("pabs", pabs_distance, tells_apart=lambda factors: not all(map(spans_everything, factors)))
