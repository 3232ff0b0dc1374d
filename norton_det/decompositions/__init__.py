"""Decompositions of convolutions and linear layers: a file and a registration line each."""

from norton_det.decompositions.base import (
    DECOMPOSITIONS,
    IMPLEMENTATIONS,
    Decomposition,
    in_implementation,
    set_implementation,
)
from norton_det.decompositions.cp import CPConv2d
from norton_det.decompositions.cp_solvers import SOLVERS
from norton_det.decompositions.svd import LowRank
from norton_det.decompositions.tucker import TuckerConv2d

__all__ = [
    "DECOMPOSITIONS",
    "IMPLEMENTATIONS",
    "SOLVERS",
    "CPConv2d",
    "Decomposition",
    "LowRank",
    "TuckerConv2d",
    "in_implementation",
    "set_implementation",
]
