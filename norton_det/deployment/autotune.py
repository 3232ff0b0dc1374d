"""Which of a layer's equal implementations is the fastest, measured on inputs of the shapes in its network."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from norton_det.decompositions import Decomposition
from norton_det.deployment.record import BlockChoice

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer, by position and by name; of images and feature maps only shape and type (device "meta")."""
Calls = tuple[Call, ...]
"""One for each time that the layer runs."""


def calls_of(net: nn.Module, arguments: tuple[Any, ...], select: Callable[[nn.Module], bool]) -> dict[str, Calls]:
    """Run ``net`` on ``arguments`` and return the calls of each selected layer, by its name.

    What is inside a decomposed layer is part of it, and no layer of its own.
    """
    calls: dict[str, Calls] = {}
    inside = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, Decomposition))

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] = (*calls.get(name, ()), tree_map(_without_values, (args, kwargs)))

        return hook

    with ExitStack() as hooks:  # removed also where the network fails
        for name, module in net.named_modules():
            if select(module) and not name.startswith(inside):
                hooks.enter_context(module.register_forward_pre_hook(record(name), with_kwargs=True))
        net(*arguments)
    return calls


def random_inputs(
    layer: nn.Module, calls: Calls, memory_format: torch.memory_format = torch.contiguous_format
) -> Calls:
    """Return arguments of these shapes on the layer's device; feature maps are random, in ``memory_format``."""
    values = [leaf for leaf in tree_leaves(calls) if isinstance(leaf, Tensor) and not leaf.is_meta]
    device = next((tensor.device for tensor in (*layer.parameters(), *values)), None)

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        return torch.randn(leaf.shape, device=device, dtype=leaf.dtype).contiguous(memory_format=memory_format)

    filled: Calls = tree_map(made, calls)
    return filled


def choose_implementations(
    net: nn.Module, calls: Mapping[str, Calls], time_implementations: Callable[[Any, Calls], Mapping[str, float]]
) -> list[BlockChoice]:
    """Return the fastest implementation of every layer; layers of the same geometry and inputs are timed once.

    Args:
        net: with the layers.
        calls: of each layer, by its name.
        time_implementations: (layer, calls) -> milliseconds of each implementation.
    """
    timings: dict[Any, Mapping[str, float]] = {}
    choices = []
    for name, inputs in calls.items():
        layer = net.get_submodule(name)
        dense = layer.to_dense() if isinstance(layer, Decomposition) else None
        key = (repr(layer), repr(dense), repr(tree_map(_shape, inputs)))
        if key not in timings:
            timings[key] = time_implementations(layer, inputs)
        milliseconds = timings[key]
        choices.append(BlockChoice(name, milliseconds, min(milliseconds, key=milliseconds.__getitem__)))
    return choices


def _without_values(leaf: Any) -> Any:
    is_map = isinstance(leaf, Tensor) and leaf.ndim == 4
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") if is_map else leaf


def _shape(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
