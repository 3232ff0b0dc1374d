"""Decompositions of convolutions: one file each, one registration line each."""

from norton_det.decompositions.base import DECOMPOSITIONS, FORMS, Decomposition, in_form, set_form
from norton_det.decompositions.cp import CPConv2d
from norton_det.decompositions.tucker import TuckerConv2d

__all__ = ["DECOMPOSITIONS", "FORMS", "CPConv2d", "Decomposition", "TuckerConv2d", "in_form", "set_form"]
