"""Equal implementations of a layer for inference: modules that compute the same and differ in speed.

A kind of layer registers its implementations, by name, at :func:`implementations_of`.
"""

import copy
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import nn

from norton_det.registry import Registry

Implementations = Registry[Callable[[Any], nn.Module]]
"""Functions from a layer to a module that computes the same, by name."""
NO_IMPLEMENTATIONS: Implementations = Registry("implementation")
"""Of a layer that stays as it is."""


@singledispatch
def implementations_of(layer: nn.Module) -> Implementations:
    """Return the equal implementations of a layer, chosen by its type; empty for a layer that stays as it is.

    Example:
        >>> list(implementations_of(nn.Linear(3, 4))), list(implementations_of(nn.ReLU()))
        (['convolution', 'linear'], [])
    """
    return NO_IMPLEMENTATIONS


def has_implementations(layer: nn.Module) -> bool:
    """Tell whether a layer has equal implementations."""
    return len(implementations_of(layer)) > 0


def expand(layer: nn.Module, implementation: str) -> nn.Module:
    """Return a module without gradients that computes what ``layer`` does, in one of its implementations.

    Raises:
        UsageError: an unknown implementation.
    """
    with torch.no_grad():
        return implementations_of(layer)[implementation](layer).train(layer.training).requires_grad_(False)


def with_class(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Return a function that returns a layer with the same parameters as another class of the same layout."""

    def changed(layer: nn.Module) -> nn.Module:
        new = copy.copy(layer)  # with its parameters, and hooks if there are any
        new.__class__ = kind
        return new

    return changed


def itself(layer: nn.Module) -> nn.Module:
    """Return ``layer``: the implementation that it has."""
    return layer
