"""The metric in which an output-aware fit measures filters: the second moment of a layer's unfolded inputs."""

import torch
from torch import Tensor


class ChannelMetric:
    """A metric on filters of I input channels, the same at each kernel position.

    Args:
        channels: the second moment of the channels, positive definite, float64 of shape (I, I).

    Attributes:
        channel_root: its lower Cholesky factor.
    """

    def __init__(self, channels: Tensor) -> None:
        self.channel_root = torch.linalg.cholesky(channels)

    def mix_channels(self, filters: Tensor) -> Tensor:
        """Return filters (O, I * P) as (O, I, P), mixed so that their norm is that in the metric of the channels."""
        by_channel = filters.view(len(filters), len(self.channel_root), -1).movedim(1, 0)
        mixed: Tensor = (self.channel_root.mT @ by_channel.flatten(1)).view(by_channel.shape)
        return mixed.movedim(0, 1)

    def unmix_channels(self, factor: Tensor) -> Tensor:
        """Undo :meth:`mix_channels` on a factor (..., I, R) of mixed filters."""
        by_channel = factor.movedim(-2, 0)  # one solution for all filters is far quicker than one for each
        unmixed: Tensor = torch.linalg.solve_triangular(self.channel_root.mT, by_channel.flatten(1), upper=True)
        return unmixed.view(by_channel.shape).movedim(0, -2)

    def solve_channels(self, right: Tensor) -> Tensor:
        """Return the inverse of the channels' matrix times ``right`` (I, N)."""
        return torch.cholesky_solve(right, self.channel_root)


class InputMetric(ChannelMetric):
    """A metric M on filters of D = I * P weights, I input channels times P kernel positions, near a Kronecker product.

    ``|w M^1/2|^2`` is the energy of the output of a filter w. M is near ``channels (x) positions`` (as in Martens and
    Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv:1503.05671), which gives
    starts and preconditioners; the channels' metric is the mean of M over the kernel positions.

    Args:
        matrix: M, positive definite, float64 of shape (D, D).
        inputs: I.

    Attributes:
        matrix: M.
        blocks: the same as (I, P, I, P).
        positions: mean of M over the input channels, scaled so that the product has the trace of M, of shape (P, P).
    """

    def __init__(self, matrix: Tensor, inputs: int) -> None:
        self.matrix = matrix
        self.blocks = matrix.view(inputs, len(matrix) // inputs, inputs, -1)
        channels = self.blocks.diagonal(dim1=1, dim2=3).mean(2)
        super().__init__(channels)
        self.positions = self.blocks.diagonal(dim1=0, dim2=2).mean(2) * inputs / channels.trace()
