"""Second moments of a layer's inputs and of its target outputs."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.linalg.least_squares import Regression, best_ridge

POSITIONS = 64
"""Maximum number of spatial positions of an image that are used in each layer: neighbours are nearly the same."""
_CHUNK = 32  # images unfolded at a time


class Moments:
    """Running sums over samples of inputs x (D) and outputs y (O), for every other image and for those between.

    One chunk of images is unfolded at a time; the largest tensors that stay are two of shape (D, D) in float64: 340 MB
    for 3x3 filters on 512 channels.

    Args:
        layer: convolution or linear layer whose geometry says what the inputs of one output are.
        generator: draws the spatial positions that are used.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
        self.layer, self.generator = layer, generator
        self.halves: list[_Sums] = []
        self.origin: list[Tensor] = []  # about which sums are taken: far from it, single precision would cancel

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add images: x (N, I, H, W) and y (N, O, H', W'), or (N, I) and (N, O) for a linear layer."""
        for inputs, outputs in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            patches = unfold(self.layer, inputs)
            drawn = torch.randperm(patches.shape[2], generator=self.generator)[:POSITIONS].to(x.device)
            patches = patches[:, :, drawn]
            targets = outputs.flatten(2)[:, :, drawn] if outputs.dim() > 2 else outputs.unsqueeze(2)
            self.origin = self.origin or [part.mean((0, 2), keepdim=True) for part in (patches, targets)]
            patches, targets = patches - self.origin[0], targets - self.origin[1]
            new = [_sums(patches[half::2], targets[half::2]) for half in (0, 1)]
            self.halves = [a.plus(b) for a, b in zip(self.halves, new, strict=True)] if self.halves else new

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of x (D,) and y (O,), float64 on the CPU."""
        total = self.halves[0].plus(self.halves[1])
        x, y = (part.flatten().to("cpu", torch.float64) for part in self.origin)
        return x + total.x / total.samples, y + total.y / total.samples

    def regression(self, prior: Tensor) -> Regression:
        """Return the problem of y from x, each about its mean: a shift of the output is free.

        The ridge is the one that is best when one half of the images is fitted and the error on the other is measured.

        Args:
            prior: weights of shape (O, D), float64.
        """
        total = self.halves[0].plus(self.halves[1]).regression(prior)
        return replace(total, ridge=best_ridge(*(half.regression(prior) for half in self.halves)))


@dataclass(frozen=True)
class _Sums:
    """Sums over samples, float64 on the CPU."""

    samples: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def regression(self, prior: Tensor) -> Regression:
        n = max(self.samples, 1)
        x, y = self.x / n, self.y / n
        power = (self.yy / n - y.square()).clamp(min=0)
        return Regression(prior, self.xx / n - x.outer(x), self.yx / n - y.outer(x), power)


def _sums(patches: Tensor, targets: Tensor) -> _Sums:
    u, v = patches.movedim(1, 0).flatten(1), targets.movedim(1, 0).flatten(1)
    sums = (u.sum(1), v.sum(1), u @ u.mT, v @ u.mT, v.square().sum(1))
    return _Sums(u.shape[1], *(part.to("cpu", torch.float64) for part in sums))


def unfold(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the inputs of each output: (N, D, L) for L spatial positions, with D as in the flattened weight."""
    if isinstance(layer, nn.Linear):
        return x.unsqueeze(2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    return F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
