"""Folding of batch norms into the layers before them, for inference.

Running the network once shows which layer each norm follows. A norm is folded where its input is the output of one
layer and nothing else uses that output.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from norton_det.channels.narrow import NORMS
from norton_det.decompositions import Decomposition
from norton_det.errors import UsageError


@singledispatch
def scale_outputs(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Change the parameters of ``layer`` so that it returns ``scale * output + shift``; False if its type cannot.

    Args:
        layer: the function is chosen by its type; it gets a bias if it has none.
        scale: of each output channel, (O,).
        shift: likewise.
    """
    return False


@scale_outputs.register(nn.Conv2d)
@scale_outputs.register(nn.Linear)
def _(layer: Any, scale: Tensor, shift: Tensor) -> bool:
    layer.weight = _scaled(layer.weight, scale)
    layer.bias = _shifted(layer.bias, scale, shift)
    return True


@scale_outputs.register
def _(layer: Decomposition, scale: Tensor, shift: Tensor) -> bool:
    layer.scale_filters(scale)
    layer.bias = _shifted(layer.bias, scale, shift)
    return True


def _scaled(weight: Tensor, scale: Tensor) -> nn.Parameter:
    return nn.Parameter(weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1)), requires_grad=False)


def _shifted(bias: Tensor | None, scale: Tensor, shift: Tensor) -> nn.Parameter:
    return nn.Parameter(shift if bias is None else bias * scale.to(bias) + shift.to(bias), requires_grad=False)


def fold_norms(net: nn.Module, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Fold the batch norms of ``net``, in evaluation mode, in place; each one becomes an identity.

    Args:
        net: the network; it is run once.
        arguments: to run it with.

    Returns:
        norm -> the layer into which it was folded, by name.
    """
    folded: dict[str, str] = {}
    for norm_name, layer_name in _followers(net, arguments):
        norm, layer = net.get_submodule(norm_name), net.get_submodule(layer_name)
        if scale_outputs(layer, *_affine(norm)):
            net.set_submodule(norm_name, nn.Identity())
            folded[norm_name] = layer_name
    return folded


def fold_structure(net: nn.Module, folded: Mapping[str, str]) -> None:
    """Give ``net`` the layers that it has after :func:`fold_norms`, with any values, in place.

    Args:
        net: the network as it was built.
        folded: the result of :func:`fold_norms` for a network of the same structure.

    Raises:
        UsageError: a name is not that of a norm, or of a layer into which one can be folded.
    """
    modules = dict(net.named_modules())
    for norm_name, layer_name in folded.items():
        norm, layer = modules.get(norm_name), modules.get(layer_name)
        mean: Any = norm.running_mean if isinstance(norm, NORMS) else None
        if mean is None or layer is None or not scale_outputs(layer, torch.ones_like(mean), torch.zeros_like(mean)):
            raise UsageError(f"norm {norm_name!r} cannot be folded into {layer_name!r} in this network")
        net.set_submodule(norm_name, nn.Identity())


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a norm in evaluation mode."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale.to(norm.running_mean), shift.to(norm.running_mean)


class _Uses(TorchFunctionMode):
    """Counts the calls of torch's functions with watched tensors, outside of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that the id stays its own
        self.counts: dict[str, int] = {}
        self.inside_norm = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.inside_norm:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self.watched:
                    name = self.watched[id(leaf)][0]
                    self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **kwargs)


def _followers(net: nn.Module, arguments: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Yield norm and layer where only the norm uses the layer's output, and both run once."""
    uses = _Uses()
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def after_layer(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        uses.watched[id(output)] = (name, output)

    def before_norm(name: str, value: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if id(value) in uses.watched:
            pairs.append((name, uses.watched[id(value)][0]))
        uses.inside_norm = True

    with _hooked(net, uses, after_layer, before_norm), uses, torch.no_grad():
        net(*arguments)
    followed = [layer for _, layer in pairs]
    for norm, layer in pairs:
        if uses.counts.get(layer, 0) == 0 and followed.count(layer) == calls[layer] == calls[norm] == 1:
            yield norm, layer


@contextmanager
def _hooked(net: nn.Module, uses: _Uses, after_layer: Any, before_norm: Any) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, module in net.named_modules():
            if isinstance(module, NORMS):
                hooks.enter_context(module.register_forward_pre_hook(lambda m, args, n=name: before_norm(n, args[0])))
                hooks.enter_context(
                    module.register_forward_hook(lambda m, args, out: setattr(uses, "inside_norm", False))
                )
            elif scale_outputs.dispatch(type(module)) is not scale_outputs.dispatch(object):
                hooks.enter_context(module.register_forward_hook(lambda m, args, out, n=name: after_layer(n, out)))
        yield
