"""How far the outputs of two networks are apart."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

TOLERANCE = 1e-4
"""Relative difference up to which outputs in float32 are called equal; of coarser types it follows their precision."""


def relative_difference(outputs: Any, expected: Any) -> float:
    """Return the largest difference of two outputs, tensor by tensor, relative to the largest value of the expected.

    Args:
        outputs: tensors in any nesting of lists, tuples, dicts, and objects with attributes.
        expected: likewise.

    Returns:
        Infinity where the nesting, a shape, or a tensor of whole numbers differs, where only one is finite, or where
        there is no tensor to compare.

    Example:
        >>> import torch
        >>> from norton_det.runtime.outputs import relative_difference
        >>> relative_difference({"scores": torch.tensor([1.0, 4.0])}, {"scores": torch.tensor([2.0, 4.0])})
        0.25
        >>> relative_difference([torch.zeros(2)], [torch.zeros(3)])
        inf
    """
    (ours, structure), (theirs, other) = tree_flatten(opened(outputs)), tree_flatten(opened(expected))
    if structure != other:
        return float("inf")
    differences = [_difference(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(b, Tensor)]
    return max(differences, default=float("inf"))


def opened(value: Any, depth: int = 3) -> Any:
    """Return outputs with objects (of classes that torch does not know as containers) as dicts of their attributes."""

    def inside(leaf: Any) -> Any:
        is_object = hasattr(leaf, "__dict__") and not isinstance(leaf, (Tensor, nn.Module, type)) and not callable(leaf)
        return {name: opened(inner, depth - 1) for name, inner in vars(leaf).items()} if is_object and depth else leaf

    return tree_map(inside, value)


def tolerance_of(expected: Any) -> float:
    """Return the relative difference that rounding explains, for outputs of this precision.

    Example:
        >>> import torch
        >>> from norton_det.runtime.outputs import tolerance_of
        >>> tolerance_of(torch.zeros(1)), tolerance_of([torch.zeros(1, dtype=torch.bfloat16)])
        (0.0001, 0.0625)
    """
    types = {leaf.dtype for leaf in tree_flatten(opened(expected))[0] if isinstance(leaf, Tensor)}
    return max([TOLERANCE, *(8 * torch.finfo(kind).eps for kind in types if kind.is_floating_point)])


def _difference(outputs: Any, expected: Tensor) -> float:
    if not isinstance(outputs, Tensor) or outputs.shape != expected.shape or outputs.dtype != expected.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if expected.dtype.is_complex:
        return _difference(torch.view_as_real(outputs), torch.view_as_real(expected))
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(outputs, expected) else float("inf")
    ours, theirs = outputs.detach().double(), expected.detach().double()
    unequal = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
    if not unequal.any():
        return 0.0
    error, finite = (ours - theirs)[unequal].abs().max(), theirs[theirs.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return float(error) / scale if error.isfinite() and scale > 0 else float("inf")
