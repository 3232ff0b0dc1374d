"""Decompositions of convolutions: one file each, one registration line each."""

from norton_det.decompositions.base import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.cp import CPConv2d, in_form, set_form, set_forms

__all__ = ["DECOMPOSITIONS", "CPConv2d", "Decomposition", "in_form", "set_form", "set_forms"]
