"""The solvers that fit CP factors to the filters of a convolution."""

from typing import Protocol

from torch import Tensor

from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.decompositions.cp_parafac import parafac_decompose
from norton_det.registry import Registry


class Solver(Protocol):
    """Fits CP factors, on the CPU in float64, to all filters (O, I, Kh, Kw) of a convolution."""

    def __call__(self, weight: Tensor, rank: int, *, seed: int) -> CPFactors:
        """Return the factors; the same seed gives bitwise the same factors.

        Raises:
            UsageError: no fit at this rank; the message names the filters.
            DataError: weights that are not finite; the message names the filters.
        """


SOLVERS: Registry[Solver] = Registry("CP solver")
"""By name: ``als``, all filters at once from several starts; ``tensorly``, one after another as in the publication."""
SOLVERS.register("als", cp_decompose)
SOLVERS.register("tensorly", parafac_decompose)
