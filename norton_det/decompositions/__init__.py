"""Decompositions of convolutions: one file each, one registration line each."""

from norton_det.decompositions.base import (
    DECOMPOSITIONS,
    IMPLEMENTATIONS,
    Decomposition,
    in_implementation,
    set_implementation,
)
from norton_det.decompositions.cp import CPConv2d
from norton_det.decompositions.tucker import TuckerConv2d

__all__ = [
    "DECOMPOSITIONS",
    "IMPLEMENTATIONS",
    "CPConv2d",
    "Decomposition",
    "TuckerConv2d",
    "in_implementation",
    "set_implementation",
]
