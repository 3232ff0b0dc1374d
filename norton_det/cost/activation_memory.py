"""Activation memory: the bytes of the tensors that one layer needs at once, measured on a network that runs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn

from norton_det.decompositions import Decomposition

BYTES = 4
"""Of a number in single precision, in which activations are counted."""
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def peak(given: Any, written: Sequence[Any], maximum: Callable[[Any, Any], Any] = max) -> Any:
    """Return the bytes that a layer needs at once.

    Its input stays until the end; of what its parts write one after another, only neighbours exist at the same time.

    Args:
        given: elements of the input.
        written: elements of what each part writes, in order; of a layer in one part, of its output alone.
        maximum: of two numbers, or of two arrays of them.

    Example:
        >>> peak(10, [6]), peak(10, [1, 2, 6])
        (64, 72)
    """
    largest = written[0]
    for before, after in pairwise(written):
        largest = maximum(largest, before + after)
    return BYTES * (given + largest)


@contextmanager
def peak_of_layers(net: nn.Module) -> Iterator[dict[str, int]]:
    """Yield the bytes that each layer of a network needs at once, filled in as the network runs.

    Layers are convolutions, linear layers, and decomposed layers as one. Of several runs of a layer the largest counts.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> with peak_of_layers(net) as memory:
        ...     _ = net(torch.rand(1, 3, 16, 16))
        >>> memory
        {'0': 11264}
    """
    peaks: dict[str, int] = {}
    handles: list[Any] = []
    inside = "."
    for name, module in net.named_modules():
        if name.startswith(inside) or not isinstance(module, (Decomposition, *_LAYERS)):
            continue
        inside = f"{name}."
        parts: list[int] = []
        for part in module.children():
            handles.append(part.register_forward_hook(_noting(parts)))
        handles.append(module.register_forward_hook(_finishing(peaks, name, parts), with_kwargs=True))
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _noting(parts: list[int]) -> Callable[..., None]:
    return lambda module, args, output: parts.append(_elements(output))


def _finishing(peaks: dict[str, int], name: str, parts: list[int]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = (*args, *named.values())[0]
        peaks[name] = max(peaks.get(name, 0), peak(_elements(given), [*parts, _elements(output)]))
        parts.clear()

    return hook


def _elements(tensor: Any) -> int:
    return math.prod(map(int, tensor.shape))
