"""The greedy elimination of all pairwise criteria."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def eliminate(distance: Tensor, keep: int) -> Tensor:
    """Remove filters until ``keep`` remain: of the closest pair, the one that is closer to all remaining filters.

    NORTON's elimination: take the pair at the smallest distance, drop the one whose distances to all remaining filters
    have the smaller sum, repeat. Equal distances are taken in the order of the filters; of two equal sums the later
    filter is dropped.

    Args:
        distance: symmetric, of shape (N, N); the diagonal is ignored.
        keep: number of remaining filters, 1 <= keep <= N.

    Returns:
        The remaining filters, int64 of shape (keep,), ascending.

    Example:
        >>> points = torch.tensor([0.0, 0.1, 1.0, 3.0])
        >>> eliminate((points[:, None] - points[None, :]).abs(), 2)
        tensor([0, 3])
    """
    d = distance.detach().to("cpu", torch.float64).numpy().copy()
    np.fill_diagonal(d, np.inf)
    alive = np.ones(len(d), dtype=bool)
    # The nearest neighbour of each filter is updated, so that a step costs O(N) instead of O(N^2).
    nearest = d.argmin(1)
    nearest_distance = d.min(1)
    for _ in range(len(d) - keep):
        first = int(nearest_distance.argmin())
        i, j = sorted((first, int(nearest[first])))
        drop = i if _sum_to_remaining(d, i) < _sum_to_remaining(d, j) else j
        alive[drop] = False
        d[drop] = d[:, drop] = np.inf
        nearest_distance[drop] = np.inf
        for orphan in np.flatnonzero(alive & (nearest == drop)):
            nearest[orphan] = d[orphan].argmin()
            nearest_distance[orphan] = d[orphan].min()
    return torch.from_numpy(np.flatnonzero(alive))


def _sum_to_remaining(d: NDArray[np.float64], i: int) -> float:
    return float(d[i][np.isfinite(d[i])].sum())
