"""Which of a layer's equal implementations is the fastest, measured on inputs like those in its network."""

from collections.abc import Callable, Mapping
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


def calls_of(net: nn.Module, arguments: tuple[Any, ...], wanted: Callable[[nn.Module], bool]) -> dict[str, Calls]:
    """Run ``net`` on ``arguments`` and return the calls of each layer that is wanted."""
    calls: dict[str, Calls] = {}
    handles = []
    for name, module in net.named_modules():
        if wanted(module):

            def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                calls[name] = (*calls.get(name, ()), tree_map(_without_values, (args, kwargs)))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    net(*arguments)
    for handle in handles:
        handle.remove()
    return calls


def random_inputs(
    block: nn.Module, calls: Calls, memory_format: torch.memory_format = torch.contiguous_format
) -> Calls:
    """Return arguments of these shapes, where the layer is; feature maps are random and lie in ``memory_format``."""
    values = [leaf for leaf in tree_leaves(calls) if isinstance(leaf, Tensor) and not leaf.is_meta]
    device = next((tensor.device for tensor in (*block.parameters(), *values)), None)

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        return torch.randn(leaf.shape, device=device, dtype=leaf.dtype).contiguous(memory_format=memory_format)

    filled: Calls = tree_map(made, calls)
    return filled


def choose_implementations(
    net: nn.Module, calls: Mapping[str, Calls], time_implementations: Callable[[Any, Calls], Mapping[str, float]]
) -> list[BlockChoice]:
    """Return the fastest implementation of every layer; layers alike in all that matters are timed once.

    Args:
        net: with the layers.
        calls: of each layer, by its name.
        time_implementations: (layer, calls) -> milliseconds of each implementation.
    """
    known: dict[Any, Mapping[str, float]] = {}
    choices = []
    for name, inputs in calls.items():
        block = net.get_submodule(name)
        dense = block.to_dense() if isinstance(block, Decomposition) else None
        key = (repr(block), repr(dense), repr(tree_map(_shape, inputs)))
        if key not in known:
            known[key] = time_implementations(block, inputs)
        choices.append(
            BlockChoice(name, known[key], min(known[key], key=lambda implementation: known[key][implementation]))
        )
    return choices


def _without_values(leaf: Any) -> Any:
    is_map = isinstance(leaf, Tensor) and leaf.ndim == 4
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") if is_map else leaf


def _shape(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
