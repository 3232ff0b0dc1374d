"""Factors of all filters of a layer, from and to tensorly's ``CPTensor``, one for each filter."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.decompositions.cp_factors import CPFactors
from norton_det.errors import UsageError


def factors_from_cp_tensors(cp_tensors: Iterable[Any]) -> CPFactors:
    """Stack the factors of filters; the weights of the terms are multiplied into mode 1.

    Args:
        cp_tensors: for each filter its weights (R,) or None and its factors [(I, R), (Kh, R), (Kw, R)], as tensors or
            arrays.

    Returns:
        Factors on the device and of the dtype of the first filter's mode 1.

    Raises:
        UsageError: no filter, a shape that does not fit; the message names the filter and the shapes.
    """
    filters = [_modes(index, cp_tensor) for index, cp_tensor in enumerate(cp_tensors)]
    if not filters:
        raise UsageError("there is no CP tensor; expected one for each filter")
    first = filters[0]
    for index, modes in enumerate(filters):
        if [mode.shape for mode in modes] != [mode.shape for mode in first]:
            raise UsageError(f"CP tensor of filter {index} has factors {_shapes(modes)}; filter 0 has {_shapes(first)}")
    if not first[0].is_floating_point():
        raise UsageError(f"CP tensor of filter 0 has dtype {first[0].dtype}; expected a floating dtype")
    return CPFactors(*(torch.stack([mode.to(first[0]) for mode in modes]) for modes in zip(*filters, strict=True)))


def _modes(index: int, cp_tensor: Any) -> list[Tensor]:
    """Return the three factor matrices of a filter, its weights multiplied into the first."""
    try:
        weights, factors = cp_tensor
        modes = [_tensor(factor) for factor in factors]
    except (TypeError, ValueError):
        kind = type(cp_tensor).__name__
        raise UsageError(f"CP tensor of filter {index} is a {kind}; expected weights and three factors") from None
    scale = None if weights is None else _tensor(weights)
    ranks = {mode.shape[-1] if mode.dim() == 2 else 0 for mode in modes}
    empty = any(mode.numel() == 0 for mode in modes)
    weighted = scale is None or scale.shape == modes[0].shape[1:]
    if len(modes) != 3 or len(ranks) > 1 or 0 in ranks or empty or not weighted:
        given = "None" if scale is None else tuple(scale.shape)
        raise UsageError(
            f"CP tensor of filter {index} has factors {_shapes(modes)} and weights {given}; "
            "expected the shapes (I, R), (Kh, R), (Kw, R) and (R,)"
        )
    return modes if scale is None else [modes[0] * scale.to(modes[0]), *modes[1:]]


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _shapes(modes: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(mode.shape)) for mode in modes)


def factors_to_cp_tensors(factors: CPFactors) -> list[Any]:
    """Return a ``tensorly.cp_tensor.CPTensor`` for each filter, with weights of one, as copies of the factors."""
    import tensorly as tl
    from tensorly.cp_tensor import CPTensor

    weights = factors.a.new_ones(factors.a.shape[2])
    with tl.backend_context("pytorch", local_threadsafe=True):
        return [CPTensor((weights.clone(), [mode.clone() for mode in modes])) for modes in zip(*factors, strict=True)]
