"""The implementation in which each decomposed layer is exported: the one that is fastest in the runtime."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from norton_det.decompositions import Decomposition
from norton_det.deployment.autotune import Calls, calls_of, choose_implementations, random_inputs
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.errors import expect_choice
from norton_det.runtime.modes import copied
from norton_det.runtime.timing import time_contenders

AUTO = "auto"
NAMES = ("factored", "depthwise", "merged", "dense")
_REPEATS = 3
_CONVOLUTION = "_convolution"  # of rows as an image: it asks for the memory format of torch

Choose = Callable[[str, Decomposition], str]
"""Name and layer -> the implementation in which the layer is exported."""
Runner = Callable[[nn.Module, tuple[Any, ...]], Callable[[], object]]
"""A layer and its arguments -> a function that computes it in the runtime."""


def in_torch(layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that computes a layer in torch."""

    def run() -> object:
        with torch.inference_mode():
            return layer(*arguments)

    return run


def chooser(implementation: str, net: nn.Module, arguments: tuple[Any, ...], runner: Runner) -> Choose:
    """Return which implementation each decomposed layer of a network gets.

    Args:
        implementation: of ``NAMES``, for layers that have it (others are factored); or "auto", the fastest of each.
        net: in evaluation mode.
        arguments: an example.
        runner: computes a layer in the runtime.

    Raises:
        UsageError: there is no such implementation.
    """
    expect_choice("implementation", implementation, (AUTO, *NAMES))
    if implementation != AUTO:
        return lambda name, layer: implementation if implementation in _known(layer) else _known(layer)[0]
    with torch.no_grad():
        calls = calls_of(copied(net), arguments, lambda layer: isinstance(layer, Decomposition))
    with tqdm(total=len(calls), desc="layers", disable=None, leave=False) as bar:
        choices = choose_implementations(net, calls, partial(_times, runner, bar))
    fastest = {choice.name: choice.implementation for choice in choices}
    return lambda name, layer: fastest.get(name, _known(layer)[0])  # one that does not run on the example


def _known(layer: nn.Module) -> list[str]:
    """Return the implementations that graphs can hold."""
    return [name for name in implementations_of(layer) if not name.endswith(_CONVOLUTION)]


def _times(runner: Runner, bar: Any, layer: nn.Module, calls: Calls) -> Mapping[str, float]:
    """Return the milliseconds of each implementation, at the largest call."""
    arguments = max((args for args, _ in random_inputs(layer, calls)), key=lambda args: args[0].numel())
    runs = {name: runner(expand(layer, name), arguments) for name in _known(layer)}
    bar.update()
    return {name: 1e3 * seconds for name, seconds in time_contenders(runs, _REPEATS).items()}
