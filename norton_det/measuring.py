"""Which form of a decomposed layer is the fastest: measured on the inputs that it gets in its network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions import Decomposition

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of a block's inputs, one for each time that it runs."""


@dataclass(frozen=True)
class BlockChoice:
    """The form that one decomposed layer was given.

    Attributes:
        name: of the block.
        milliseconds: median time of each form on the inputs that the block gets.
        form: the fastest.
    """

    name: str
    milliseconds: Mapping[str, float]
    form: str


def shapes_of_inputs(net: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Shapes]:
    """Run ``net`` on ``arguments`` and return the shapes of the inputs that each decomposed layer gets."""
    shapes: dict[str, Shapes] = {}
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, Decomposition):

            def note(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = (*shapes.get(name, ()), tuple(args[0].shape))

            handles.append(module.register_forward_pre_hook(note))
    net(*arguments)
    for handle in handles:
        handle.remove()
    return shapes


def random_inputs(block: Decomposition, shapes: Shapes) -> list[Tensor]:
    """Return inputs of these shapes with the device and the dtype of ``block``."""
    weight = next(block.parameters())
    return [torch.randn(shape, device=weight.device, dtype=weight.dtype) for shape in shapes]


def choose_forms(
    net: nn.Module, shapes: Mapping[str, Shapes], time_forms: Callable[[Decomposition, Shapes], Mapping[str, float]]
) -> list[BlockChoice]:
    """Return the fastest form of every block; blocks alike in all that matters are timed once.

    Args:
        net: with the blocks.
        shapes: of each block's inputs, by the block's name.
        time_forms: (block, shapes) -> milliseconds of each form.
    """
    known: dict[Any, Mapping[str, float]] = {}
    choices = []
    for name, inputs in shapes.items():
        block = net.get_submodule(name)
        assert isinstance(block, Decomposition)
        key = (repr(block), repr(block.to_dense()), inputs)
        if key not in known:
            known[key] = time_forms(block, inputs)
        choices.append(BlockChoice(name, known[key], min(known[key], key=lambda form: known[key][form])))
    return choices
