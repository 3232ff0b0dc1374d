"""PABS, principal angles between subspaces: the criterion of NORTON."""

import torch
from torch import Tensor

from norton_det.criteria.base import register_distance
from norton_det.criteria.subspaces import largest_principal_cosine


def pabs_distance(factors: tuple[Tensor, ...]) -> Tensor:
    """Return the sum over the modes of the largest principal angle between the factors' column spaces.

    Args:
        factors: each filter's factor matrix of each mode, of shapes (O, n_mode, R).

    Returns:
        Angles in radians, float64 of shape (O, O), 0 (identical spaces) to modes * pi / 2 (orthogonal ones).
    """
    return torch.stack([largest_principal_cosine(factor).acos() for factor in factors]).sum(0)


register_distance("pabs", pabs_distance)
