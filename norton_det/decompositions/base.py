"""The interface of a decomposition."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from norton_det.decompositions.conv import DenseLayer, Size, geometry, not_spatial
from norton_det.decompositions.input_metric import ChannelMetric
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import LeastSquares
from norton_det.registry import Registry
from norton_det.spec import Rank

IMPLEMENTATIONS = ("factored", "depthwise", "merged", "dense")
"""How a block may be computed: as separate convolutions, with some of them multiplied out, or as one dense one."""


class Decomposition(nn.Module, ABC):
    """A block that replaces an ``nn.Conv2d`` of the same geometry, or an ``nn.Linear``, by factors of its weight.

    A new kind is a subclass in a file of its own, registered in :data:`DECOMPOSITIONS`, with a function registered at
    :func:`norton_det.channels.narrow.narrow`.

    Example:
        >>> conv = nn.Conv2d(16, 32, 3, padding=1)
        >>> for name in DECOMPOSITIONS:
        ...     block = DECOMPOSITIONS[name].from_layer(conv, 4)
        ...     print(name, block.rank, tuple(block(torch.randn(1, 16, 8, 8)).shape))
        cp 4 (1, 32, 8, 8)
        svd 4 (1, 32, 8, 8)
        tucker2 (4, 4) (1, 32, 8, 8)
    """

    rank: Rank
    """Of the block."""
    implementation: str
    """How it is computed."""
    implementations: ClassVar[tuple[str, ...]]
    """The values of ``implementation``; "dense" is one of them."""
    solvers: ClassVar[Registry[Any]]
    """By name, functions ``(weight, rank, *, seed)`` -> factors, as :meth:`_write` takes them.

    The weight is (O, I, Kh, Kw), or (O, I) of a linear layer.
    """
    default_solver: ClassVar[str] = "als"
    rank_is_width: ClassVar[bool] = False
    """Whether the rank is a number of channels, which may be wanted in multiples."""
    projects_outputs: ClassVar[bool] = False
    """Whether its best fit at any rank is a projection of the layer's outputs on their leading directions."""
    bias: Tensor | None

    @classmethod
    def suits(cls, layer: DenseLayer) -> str | None:
        """Return why one rank for all is not meant for ``layer``; None where it is.

        The default is meant for convolutions with a kernel above 1x1. Layers that are named may be any that
        :meth:`rank_for` takes.
        """
        return not_spatial(layer)

    @classmethod
    @abstractmethod
    def rank_for(cls, layer: DenseLayer, rank: Rank) -> Rank:
        """Return the rank of the block for ``layer`` when ``rank`` is asked for.

        Raises:
            UsageError: ``layer`` is of a kind that has no such block, or ``rank`` is no rank of it.
        """

    @classmethod
    @abstractmethod
    def choices(cls, layer: DenseLayer) -> list[Rank]:
        """Return the ranks from which an allocation may choose for ``layer``."""

    @staticmethod
    @abstractmethod
    def cost(width_in: Any, width_out: Any, kernel: Size, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, Any]:
        """Return multiply-accumulates and weights without bias, in closed form; numbers or arrays that broadcast.

        Args:
            width_in: I.
            width_out: O.
            kernel: (Kh, Kw); of a linear layer (P, 1), if it reads P spatial positions of each channel.
            inputs: height and width of the input; of a linear layer the number of rows, and 1.
            outputs: height and width of the output; likewise.
            rank: as in :attr:`rank`.
        """

    @staticmethod
    @abstractmethod
    def between(width_out: Any, inputs: Size, outputs: Size, rank: Any) -> tuple[Any, ...]:
        """Return how many elements each tensor between the factors has, in order; arguments as of :meth:`cost`."""

    @classmethod
    @abstractmethod
    def like(cls, layer: DenseLayer, rank: Rank) -> Self:
        """Return an unfitted block with the geometry, bias, device and dtype of ``layer``."""

    @classmethod
    def from_layer(cls, layer: DenseLayer, rank: Rank, *, seed: int = 0, solver: str | None = None) -> Self:
        """Return the block fitted to the filters of ``layer``, which stays as it is.

        The factors are frozen if the weight is, the bias if the bias is. The fit is in float64 on the CPU, whatever the
        dtype and device of ``layer``.

        Args:
            layer: the convolution or linear layer.
            rank: as for :meth:`rank_for`.
            seed: of the solver's random starts.
            solver: name of one of :attr:`solvers`; None takes the default one.

        Raises:
            UsageError: ``layer`` has no such block (it is grouped), a wrong rank, an unknown solver, filters without a
                fit at this rank.
            DataError: weights that are not finite; the message names the filters.
        """
        fit = cls.solvers[solver or cls.default_solver]
        block = cls.like(layer, rank)
        block._write(fit(layer.weight, block.rank, seed=seed))
        block._write_bias(layer.bias)
        for name, parameter in block.named_parameters():
            given = layer.bias if name == "bias" and layer.bias is not None else layer.weight
            parameter.requires_grad_(given.requires_grad)
        return block.train(layer.training)

    from_conv = from_layer  # its name when convolutions were all that is decomposed

    @abstractmethod
    def refit(
        self, regression: LeastSquares, *, seed: int = 0, sweeps: int | None = None, second_start: bool = True
    ) -> None:
        """Lower the output error of the filters, of D = I * Kh * Kw weights each; it never rises.

        The bias stays: both sides of the regression are about their means.

        Args:
            regression: from the layer's inputs to its target outputs.
            seed: of the fit's second start.
            sweeps: of the alternating fit; None: its usual number. Fewer are enough where ranks are compared.
            second_start: begin from another decomposition too, not only from the factors so far.
        """

    @classmethod
    def estimates(
        cls, layer: DenseLayer, metric: ChannelMetric, ranks: Sequence[Rank], *, seed: int = 0
    ) -> Iterator[Tensor]:
        """Yield for each rank the weights (O, D) of a quick fit, float64, by which ranks of wide layers are compared.

        The default is the fit to the weights alone.

        Args:
            layer: the layer that would be decomposed.
            metric: of its input channels.
            ranks: as for :meth:`rank_for`.
            seed: of the fits' starts.
        """
        for rank in ranks:
            yield cls.from_layer(layer, rank, seed=seed).to_dense().weight.detach().cpu().double().flatten(1)

    @abstractmethod
    def _write(self, factors: Any) -> None:
        """Set the parameters to factors that a solver returned."""

    @torch.no_grad()
    def _write_bias(self, bias: Tensor | None) -> None:
        """Set the bias, if there is one."""
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    @abstractmethod
    def scale_filters(self, scale: Tensor) -> None:
        """Multiply each filter by a number, of shape (O,), in place; the bias stays."""

    @abstractmethod
    def to_dense(self) -> DenseLayer:
        """Return the layer with the reconstructed weight; outputs agree up to rounding."""

    def geometry(self) -> dict[str, Any]:
        """Return stride, padding, dilation and padding mode of the convolution that is replaced; none if linear."""
        return geometry(self.to_dense())

    @abstractmethod
    def factors(self) -> tuple[Tensor, ...] | None:
        """Return each filter's factor matrix of each mode, of shapes (O, n_mode, rank); None if filters share them."""

    @abstractmethod
    def term_energy(self) -> Tensor:
        """Return each filter's sum of ``||term||^2``, float64 of shape (O,).

        A sum far above the filter's ``||W||^2`` means degeneracy: large terms that cancel each other.
        """


def set_implementation(net: nn.Module, implementation: str) -> None:
    """Set the implementation of every decomposed layer in ``net``; parameters stay as they are.

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
    """Set the implementation of the decomposed layers in ``net`` inside the context; restore it afterwards."""
    before = {module: module.implementation for module in net.modules() if isinstance(module, Decomposition)}
    set_implementation(net, implementation)
    try:
        yield
    finally:
        for module, previous in before.items():
            module.implementation = previous


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("decomposition")
"""By name."""
