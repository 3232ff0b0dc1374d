"""Second moments of a layer's inputs and of its target outputs."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.linalg.least_squares import Regression, Solve, best_ridge

POSITIONS = 64
"""Maximum number of spatial positions of an image that are used in each layer: neighbours are nearly the same."""
_CHUNK = 32  # images unfolded at a time


class Moments:
    """Second moments of inputs x (D) and outputs y (O) over samples, for every other image and for those between.

    One chunk of images is unfolded at a time; the largest tensors that stay are two of shape (D, D) in float64: 340 MB
    for 3x3 filters on 512 channels.

    Args:
        layer: convolution or linear layer whose geometry says what the inputs of one output are.
        generator: draws the spatial positions that are used.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
        self.layer, self.generator = layer, generator
        self.halves: list[_Samples] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add images of any dtype: x (N, I, H, W) and y (N, O, H', W'), or (N, I) and (N, O) for a linear layer."""
        for inputs, outputs in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            patches = unfold(self.layer, inputs.to(torch.promote_types(inputs.dtype, torch.float32)))
            drawn = torch.randperm(patches.shape[2], generator=self.generator)[:POSITIONS].to(x.device)
            patches = patches[:, :, drawn]
            targets = outputs.flatten(2)[:, :, drawn] if outputs.dim() > 2 else outputs.unsqueeze(2)
            new = [_samples(patches[half::2], targets[half::2]) for half in (0, 1)]
            self.halves = [a.plus(b) for a, b in zip(self.halves, new, strict=True)] if self.halves else new

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of x (D,) and y (O,), float64 on the CPU."""
        total = self.halves[0].plus(self.halves[1])
        return total.x, total.y

    def regression(self, prior: Tensor, solve: Solve | None = Regression.solution) -> Regression:
        """Return the problem of y from x, each about its mean: a shift of the output is free.

        The ridge is the one that is best when one half of the images is fitted and the error on the other is measured.

        Args:
            prior: weights of shape (O, D), float64.
            solve: fits a layer to half of the images; None leaves the ridge at its default.
        """
        total = self.halves[0].plus(self.halves[1]).regression(prior)
        if solve is None:
            return total
        fit, check = (half.regression(prior) for half in self.halves)
        return replace(total, ridge=best_ridge(fit, check, solve))


@dataclass(frozen=True)
class _Samples:
    """Means of samples and sums of products about them, float64 on the CPU."""

    number: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    def plus(self, other: "_Samples") -> "_Samples":
        """Return both together; nothing cancels (Chan, Golub and LeVeque, "Updating formulae", 1979)."""
        number = self.number + other.number
        part = other.number / max(number, 1)
        x, y, between = other.x - self.x, other.y - self.y, part * self.number
        return _Samples(
            number,
            self.x + part * x,
            self.y + part * y,
            self.xx + other.xx + between * x.outer(x),
            self.yx + other.yx + between * y.outer(x),
            self.yy + other.yy + between * y.square(),
        )

    def regression(self, prior: Tensor) -> Regression:
        n = max(self.number, 1)
        return Regression(prior, self.xx / n, self.yx / n, self.yy / n)


def _samples(patches: Tensor, targets: Tensor) -> _Samples:
    # In float64, so that what the products make up is positive semi-definite far below the smallest ridge.
    u, v = (part.movedim(1, 0).flatten(1).double() for part in (patches, targets))
    number = max(u.shape[1], 1)
    x, y = u.sum(1) / number, v.sum(1) / number
    u, v = u - x[:, None], v - y[:, None]
    return _Samples(u.shape[1], *(part.cpu() for part in (x, y, u @ u.mT, v @ u.mT, v.square().sum(1))))


def unfold(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the inputs of each output: (N, D, L) for L spatial positions, with D as in the flattened weight."""
    if isinstance(layer, nn.Linear):
        return x.unsqueeze(2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    return F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
