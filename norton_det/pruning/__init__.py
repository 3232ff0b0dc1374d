"""Pruning criteria, which choose the channels to keep: a file and a registration line each."""

import norton_det.pruning.csa
import norton_det.pruning.norm
import norton_det.pruning.pabs
import norton_det.pruning.random
import norton_det.pruning.vbd  # noqa: F401  each registers its criterion
from norton_det.pruning.base import CRITERIA, Criterion, Filters

__all__ = ["CRITERIA", "Criterion", "Filters"]
