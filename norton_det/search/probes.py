"""What a change of one layer's weights does to the network's output, to first order, along a random direction.

The output changes by the inner product of the change with the gradient by the weights. A change that only mixes a
layer's outputs, or only its input channels, is an inner product with a small matrix: the weights of a layer with 12,544
inputs need not be stored for each choice.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norton_det.calibration.linear_map import not_a_map, unfold, unfolded_outputs
from norton_det.channels.narrow import ChannelMap
from norton_det.spec import DecomposedLayer

_LARGE = 2**18  # numbers


class RankChoice(NamedTuple):
    """Decompose a layer by a method at a rank; None leaves it dense."""

    layer: str
    decomposed: DecomposedLayer | None


class RateChoice(NamedTuple):
    """Raise a rate, by its number in the architecture's order, to a level: that many 16ths."""

    rate: int
    level: int


Choice = RankChoice | RateChoice


def is_measured(layer: nn.Module) -> bool:
    """Tell whether changes of a layer can be measured: it is a linear map, the same for all its outputs."""
    maps = isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)) and not_a_map(layer) is None
    return maps or isinstance(layer, ChannelMap)


class Probe(ABC):
    """Choices for one layer, each as F numbers; what it changes is their product with :meth:`features`.

    Attributes:
        choices: K of them.
        deltas: K times (F,); those of large layers in half the memory.
    """

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.deltas: list[Tensor] = []

    def add(self, choice: Choice, delta: Tensor) -> None:
        """Add a choice and what it changes, of any shape with F numbers."""
        self.choices.append(choice)
        self.deltas.append(delta.flatten().to(torch.bfloat16 if delta.numel() > _LARGE else torch.float32))

    @abstractmethod
    def noted(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what is needed of a layer's input and output (N, ...) when the gradient is there."""

    @abstractmethod
    def features(self, layer: Any, noted: Tensor, gradient: Tensor) -> Tensor:
        """Return F numbers, of any shape, summed over some rows of what was noted and of the gradient (M, O, L)."""


class WeightProbe(Probe):
    """Changes of the weights (O, D); a shift of the outputs costs nothing.

    Args:
        mean: of the unfolded inputs, (D,).
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean.float()

    def noted(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the input."""
        return x.detach()

    def features(self, layer: Any, noted: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient by the weights, the inputs taken about their mean."""
        rows, patches = _rows(gradient), _rows(unfold(layer, noted))
        return rows @ patches.mT - rows.sum(1).outer(self.mean.to(rows))


class OutputProbe(Probe):
    """Changes of the outputs along O orthonormal directions, by a factor for each, (O,): -1 takes it away.

    Args:
        mean: of the outputs, (O,).
        basis: the directions as columns, (O, O); None: the channels.
    """

    def __init__(self, mean: Tensor, basis: Tensor | None = None) -> None:
        super().__init__()
        self.mean, self.basis = mean.float(), None if basis is None else basis.mT.float()

    def noted(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the outputs about their mean."""
        return unfolded_outputs(layer, y.detach()) - self.mean.to(y)[:, None]

    def features(self, layer: Any, noted: Tensor, gradient: Tensor) -> Tensor:
        """Return for each direction the product of output and gradient along it."""
        rows, outputs = _rows(gradient), _rows(noted)
        if self.basis is not None:
            basis = self.basis.to(rows)
            rows, outputs = basis @ rows, basis @ outputs
        return (rows * outputs).sum(1)


class ChannelProbe(Probe):
    """Mixtures of the input channels of a linear layer that reads flattened maps, the same at every position, (C, C).

    Args:
        mean: of the inputs, (C, P) for P positions of each channel.
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean.float()

    def noted(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the input about its mean."""
        return x.detach() - self.mean.to(x).flatten()

    def features(self, layer: Any, noted: Tensor, gradient: Tensor) -> Tensor:
        """Return the products of the gradient by each input channel with each input channel."""
        by_input = gradient.flatten(1) @ layer.weight.detach()
        shape = (len(noted), *self.mean.shape)
        return _rows(by_input.view(shape)) @ _rows(noted.view(shape)).mT


def _rows(x: Tensor) -> Tensor:
    """Return (M, C, L) as (C, M * L)."""
    return x.movedim(1, 0).flatten(1)
