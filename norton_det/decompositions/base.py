"""What a decomposition has to offer to be plugged in."""

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn

from norton_det.registry import Registry
from norton_det.regression import Regression


class Decomposition(nn.Module, ABC):
    """A block that stands for a decomposed ``nn.Conv2d`` and computes what a convolution of the same geometry would.

    A new kind is a subclass in a file of its own, registered in :data:`DECOMPOSITIONS`, with a function registered at
    :func:`norton_det.channels.narrow`.
    """

    rank: int

    @classmethod
    @abstractmethod
    def like(cls, conv: nn.Conv2d, rank: int) -> Self:
        """Return an unfitted block with the geometry, bias, device and dtype of ``conv``."""

    @classmethod
    @abstractmethod
    def from_conv(cls, conv: nn.Conv2d, rank: int, *, seed: int = 0) -> Self:
        """Return the block fitted to the filters of ``conv``, which stays as it is."""

    @abstractmethod
    def refit(self, regression: Regression, *, seed: int = 0) -> None:
        """Bring the output of each filter, of D = I * Kh * Kw weights, nearer to what is wanted, never farther from it.

        The bias stays: both sides of the regression are about their means.
        """

    @abstractmethod
    def to_dense(self) -> nn.Conv2d:
        """Return the one convolution that computes the same."""

    @abstractmethod
    def factors(self) -> tuple[Tensor, ...]:
        """Return each filter's factor matrix of each mode, of shapes (O, n_mode, rank)."""

    @abstractmethod
    def term_energy(self) -> Tensor:
        """Return each filter's sum of ``||term||^2``, of shape (O,).

        Far above the filter's own ``||W||^2`` it means terms that cancel each other.
        """


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("decomposition")
