"""What a decomposition has to offer to be plugged in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from norton_det.errors import UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.registry import Registry
from norton_det.spec import Rank

Size = tuple[int, int]
IMPLEMENTATIONS = ("factored", "depthwise", "merged", "dense")
"""How a block may be computed: one convolution after another, some of them multiplied out, or one dense one."""


class Decomposition(nn.Module, ABC):
    """A block that stands for a decomposed ``nn.Conv2d`` and computes what a convolution of the same geometry would.

    A new kind is a subclass in a file of its own, registered in :data:`DECOMPOSITIONS`, with a function registered at
    :func:`norton_det.channels.narrow.narrow`.
    """

    rank: Rank
    implementation: str
    """How it is computed."""
    implementations: ClassVar[tuple[str, ...]]
    """Which values that may have; "dense" is one of them."""
    bias: Tensor | None

    @classmethod
    @abstractmethod
    def rank_for(cls, conv: nn.Conv2d, rank: Rank) -> Rank:
        """Return the rank that ``conv`` gets where ``rank`` is wanted.

        Raises:
            UsageError: that is no rank of this decomposition.
        """

    @classmethod
    @abstractmethod
    def choices(cls, conv: nn.Conv2d) -> list[Rank]:
        """Return the ranks between which an allocation may choose for ``conv``."""

    @staticmethod
    @abstractmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights without bias, in closed form; numbers or arrays that broadcast.

        Args:
            width_in: I.
            width_out: O.
            kernel: (Kh, Kw).
            inputs: height and width of the input.
            outputs: height and width of the output.
            rank: as in :attr:`rank`.
        """

    @classmethod
    @abstractmethod
    def like(cls, conv: nn.Conv2d, rank: Rank) -> Self:
        """Return an unfitted block with the geometry, bias, device and dtype of ``conv``."""

    @classmethod
    @abstractmethod
    def from_conv(cls, conv: nn.Conv2d, rank: Rank, *, seed: int = 0) -> Self:
        """Return the block fitted to the filters of ``conv``, which stays as it is."""

    @abstractmethod
    def refit(self, regression: Regression, *, seed: int = 0, sweeps: int | None = None) -> None:
        """Bring the outputs of all filters, of D = I * Kh * Kw weights each, nearer to what is wanted, never farther.

        The bias stays: both sides of the regression are about their means. Fewer sweeps of the alternating fit than it
        has by itself do where ranks are compared.
        """

    @abstractmethod
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number, of shape (O,), in place; the bias stays."""

    @abstractmethod
    def to_dense(self) -> nn.Conv2d:
        """Return the one convolution that computes the same."""

    @abstractmethod
    def factors(self) -> tuple[Tensor, ...] | None:
        """Return each filter's factor matrix of each mode, of shapes (O, n_mode, rank); None if filters share them."""

    @abstractmethod
    def term_energy(self) -> Tensor:
        """Return each filter's sum of ``||term||^2``, of shape (O,).

        Far above the filter's own ``||W||^2`` it means terms that cancel each other.
        """


def set_implementation(net: nn.Module, implementation: str) -> None:
    """Let every decomposed layer in ``net`` be computed in one implementation; parameters stay as they are.

    Raises:
        UsageError: an implementation that one of the layers does not have.
    """
    blocks = [module for module in net.modules() if isinstance(module, Decomposition)]
    for implementations in [block.implementations for block in blocks] or [IMPLEMENTATIONS]:
        if implementation not in implementations:
            raise UsageError(
                f"unknown implementation {implementation!r}; expected one of: {', '.join(implementations)}"
            )
    for block in blocks:
        block.implementation = implementation


@contextmanager
def in_implementation(net: nn.Module, implementation: str) -> Iterator[None]:
    """Let the decomposed layers in ``net`` be computed in one implementation for a while."""
    implementations = {module: module.implementation for module in net.modules() if isinstance(module, Decomposition)}
    set_implementation(net, implementation)
    try:
        yield
    finally:
        for module, own in implementations.items():
            module.implementation = own


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("decomposition")
