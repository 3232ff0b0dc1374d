"""Second moments of a layer's input channels and of its outputs, each by itself."""

import torch
from torch import Tensor


class ChannelMoments:
    """Moments of inputs (N, C * P), P spatial positions of each of C channels, and of outputs (M, O).

    The second moment of all inputs of a layer, of which the first linear layer of Faster R-CNN's box head has 12,544,
    is never formed: that of the channels, over samples and positions, says how well some channels stand for others.

    Args:
        positions: P.

    Example:
        >>> moments = ChannelMoments(2)
        >>> moments.add(torch.tensor([[1.0, 3.0, 0.0, 0.0], [3.0, 1.0, 0.0, 2.0]]), torch.tensor([[1.0], [5.0]]))
        >>> moments.mean_x
        tensor([[2., 2.],
                [0., 1.]], dtype=torch.float64)
        >>> moments.channels(), moments.outputs()
        (tensor([[ 2., -1.],
                [-1.,  1.]], dtype=torch.float64), tensor([[4.]], dtype=torch.float64))
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples of any dtype; of the outputs there may be another number."""
        x = x.float().unflatten(1, (-1, self.positions))
        rows, y = x.movedim(1, 0).flatten(1), y.float()
        counts = torch.tensor([len(x)]), torch.tensor([len(y)])
        new = [part.cpu().double() for part in (*counts, x.sum(0), y.sum(0), rows @ rows.mT, y.mT @ y)]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new

    @property
    def mean_x(self) -> Tensor:
        """Mean of the inputs, (C, P), float64."""
        return self._sums[2] / self._sums[0]

    @property
    def mean_y(self) -> Tensor:
        """Mean of the outputs, (O,), float64."""
        return self._sums[3] / self._sums[1]

    def channels(self) -> Tensor:
        """Return the second moment of the channels about their means, summed over positions, (C, C)."""
        return self._sums[4] / self._sums[0] - self.mean_x @ self.mean_x.mT

    def outputs(self) -> Tensor:
        """Return the second moment of the outputs about their means, (O, O)."""
        return self._sums[5] / self._sums[1] - self.mean_y.outer(self.mean_y)
