"""The greedy elimination of all pairwise criteria."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROUNDING = 1e-12  # sums that differ by less of them are equal


def eliminate(distance: Tensor, keep: int, size: Tensor | None = None) -> Tensor:
    """Remove filters until ``keep`` remain: of the closest pair, the one that is closer to all remaining filters.

    NORTON's elimination: take the pair at the smallest distance, drop the one whose distances to all remaining filters
    have the smaller sum, repeat. Of equal distances the pair with the smallest filter is taken, of equal sums the
    smaller filter is dropped; of equally large filters the later one counts as smaller.

    Args:
        distance: symmetric, of shape (N, N); the diagonal is ignored.
        keep: number of remaining filters, 1 <= keep <= N.
        size: of the filters, of shape (N,); None: all are equally large.

    Returns:
        The remaining filters, int64 of shape (keep,), ascending.

    Example:
        >>> points = torch.tensor([0.0, 0.1, 1.0, 3.0])
        >>> eliminate((points[:, None] - points[None, :]).abs(), 2)
        tensor([0, 3])
        >>> eliminate(torch.zeros(3, 3), 2, size=torch.tensor([2.0, 1.0, 3.0]))
        tensor([0, 2])
    """
    d = distance.detach().to("cpu", torch.float64).numpy()
    sizes = np.zeros(len(d)) if size is None else size.detach().to("cpu", torch.float64).numpy()
    order = np.lexsort((-np.arange(len(d)), sizes))  # the smallest filter first
    d = d[np.ix_(order, order)]
    np.fill_diagonal(d, np.inf)
    alive = np.ones(len(d), dtype=bool)
    # The nearest neighbour of each filter is updated, so that a step costs O(N) instead of O(N^2).
    nearest = d.argmin(1)
    nearest_distance = d.min(1)
    for _ in range(len(d) - keep):
        first = int(nearest_distance.argmin())
        i, j = sorted((first, int(nearest[first])))
        drop = j if _sum_to_remaining(d, j) < (1 - _ROUNDING) * _sum_to_remaining(d, i) else i
        alive[drop] = False
        d[drop] = d[:, drop] = np.inf
        nearest_distance[drop] = np.inf
        for orphan in np.flatnonzero(alive & (nearest == drop)):
            nearest[orphan] = d[orphan].argmin()
            nearest_distance[orphan] = d[orphan].min()
    return torch.from_numpy(np.sort(order[alive]))


def _sum_to_remaining(d: NDArray[np.float64], i: int) -> float:
    return float(d[i][np.isfinite(d[i])].sum())
