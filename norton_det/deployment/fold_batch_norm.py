"""Folding of batch norms into the layers before them, for inference."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions import Decomposition
from norton_det.deployment.followers import after_norm, is_layer, is_norm
from norton_det.errors import UsageError


def fold_norms(net: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold batch norms of ``net`` in place; what they do beside normalising stays, or else an identity.

    Args:
        net: the network, in evaluation mode.
        pairs: norm -> the layer into which it is folded, by name, as of
            :func:`norton_det.deployment.followers.followers`.
    """
    for norm_name, layer_name in pairs.items():
        norm = net.get_submodule(norm_name)
        scale_outputs(net.get_submodule(layer_name), *_affine(norm))
        net.set_submodule(norm_name, after_norm(norm))


def fold_structure(net: nn.Module, folded: Mapping[str, str]) -> None:
    """Give ``net`` the layers that it has after :func:`fold_norms`, with any values, in place.

    Args:
        net: the network as it was built.
        folded: norm -> layer, of a network of the same structure.

    Raises:
        UsageError: a name is not that of a norm, or of a layer into which one can be folded.
    """
    modules = dict(net.named_modules())
    for norm_name, layer_name in folded.items():
        norm: Any = modules.get(norm_name)
        layer = modules.get(layer_name)
        if norm is None or layer is None or not (is_norm(norm) and is_layer(layer)):
            raise UsageError(f"norm {norm_name!r} cannot be folded into {layer_name!r} in this network")
        widths = len(norm.running_mean), _outputs(layer)
        if widths[0] != widths[1]:
            raise UsageError(f"norm {norm_name!r} of {widths[0]} channels is folded into {layer_name!r} of {widths[1]}")
        scale_outputs(layer, torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean))
        net.set_submodule(norm_name, after_norm(norm))


def _outputs(layer: Any) -> int:
    return int(getattr(layer, "out_channels", None) or layer.out_features)


@singledispatch
def scale_outputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Change the parameters of ``layer`` so that it returns ``scale * output + shift``.

    Args:
        layer: a convolution, a linear layer or a decomposed one; it gets a bias if it has none.
        scale: of each output channel, (O,).
        shift: likewise.
    """
    layer.weight = _scaled(layer.weight, scale)
    layer.bias = _shifted(layer, scale, shift)


@scale_outputs.register
def _(layer: Decomposition, scale: Tensor, shift: Tensor) -> None:
    layer.scale_filters(scale)
    layer.bias = _shifted(layer, scale, shift)


def _scaled(weight: Tensor, scale: Tensor) -> nn.Parameter:
    return nn.Parameter(weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1)), requires_grad=False)


def _shifted(layer: Any, scale: Tensor, shift: Tensor) -> nn.Parameter:
    kind = next(layer.parameters()).dtype
    bias = shift if layer.bias is None else layer.bias * scale.to(kind) + shift.to(kind)
    return nn.Parameter(bias.to(kind), requires_grad=False)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a norm in evaluation mode."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale.to(norm.running_mean), shift.to(norm.running_mean)
