"""Pruning criteria: one file each, one registration line each."""

from norton_det.criteria import csa, norm, pabs, random, vbd
from norton_det.criteria.base import CRITERIA, Criterion, Filters

__all__ = ["CRITERIA", "Criterion", "Filters", "csa", "norm", "pabs", "random", "vbd"]
