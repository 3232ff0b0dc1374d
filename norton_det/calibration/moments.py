"""Second moments of a layer's inputs and of its target outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.calibration.linear_map import at_positions, unfold_at, unfolded_outputs
from norton_det.linalg.least_squares import LeastSquares, Regression, SampleRegression, Solve, best_ridge, solution_of

POSITIONS = 64
"""Maximum number of spatial positions of an image that are used in each layer: neighbours are nearly the same."""
MANY = 8192
"""Number of inputs above which second moments are not formed: they would take 0.5 GB, and minutes to factorise."""
_CHUNK = 32  # rows unfolded at a time


class Moments:
    """Second moments of inputs x (D) and outputs y (O) over samples, for every other image and for those between.

    All calls of a layer, for some images after others, are added to the same moments: but for rounding these do not
    depend on how many images come at a time. One chunk of rows is unfolded at a time; the largest tensors that stay
    are two of shape (D, D) in float64: 340 MB for 3x3 filters on 512 channels. As long as there are fewer samples than
    inputs, and above :data:`MANY` inputs, the samples themselves stay.

    Args:
        layer: layer whose geometry says what the inputs of one output are.
        seed: of the spatial positions that are used, which are drawn for each row.
        calls: number of calls, which share the positions of an image.
    """

    def __init__(self, layer: nn.Module, seed: int, calls: int = 1) -> None:
        self.layer, self.calls = layer, calls
        self._generators = [torch.Generator().manual_seed(seed + call) for call in range(calls)]
        self._sums: list[_Samples] = []  # of both halves
        self._rows: list[list[_Rows]] = [[], []]  # of both, that are not in the sums yet

    def add(self, x: Tensor, y: Tensor, images: range | None = None, call: int = 0) -> None:
        """Add rows of any dtype: x (N, I, H, W) and y (N, O, H', W'), or (N, I) and (N, O) for a linear layer.

        Args:
            x: inputs.
            y: outputs that are wanted.
            images: numbers of the images that the rows come from, equally many from each; None: each is an image.
            call: which of the calls it is.
        """
        images = range(len(x)) if images is None else images
        half_of = (images.start + torch.arange(len(x)) * len(images) // max(len(x), 1)) % 2
        count = min(POSITIONS, max(1, POSITIONS * len(images) // max(self.calls * len(x), 1)))
        for inputs, outputs, half in zip(x.split(_CHUNK), y.split(_CHUNK), half_of.split(_CHUNK), strict=True):
            targets = unfolded_outputs(self.layer, outputs)
            drawn = self._drawn(targets, count, call)
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            patches, targets = unfold_at(self.layer, inputs, drawn, y.shape[-1]), at_positions(targets, drawn)
            for rows, h in zip(self._rows, (0, 1), strict=True):
                rows.append(_Rows.of(patches[half == h], targets[half == h]))
            self._sum(patches.shape[1])

    def _drawn(self, targets: Tensor, count: int, call: int) -> Tensor:
        """Return positions of each row, (N, L)."""
        total, generator = targets.shape[2], self._generators[call]
        drawn = torch.empty(len(targets), min(count, total), dtype=torch.int64)
        for row in drawn:
            row.copy_(torch.randperm(total, generator=generator)[:count])
        return drawn.to(targets.device)

    def _sum(self, inputs: int) -> None:
        """Add the rows to the sums where there are more of them than inputs."""
        if inputs <= MANY and sum(len(rows.x) for half in self._rows for rows in half) > inputs:
            self._sums, self._rows = [half.summed() for half in self._halves()], [[], []]

    def _halves(self) -> list[Any]:
        """Return both halves, as sums or as the samples themselves."""
        rows = [
            _Rows(torch.cat([part.x for part in half]), torch.cat([part.y for part in half]))
            for half in self._rows
            if half
        ]
        if not self._sums:
            return rows
        return [half.plus(part) for half, part in zip(self._sums, rows, strict=True)] if rows else self._sums

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of x (D,) and y (O,), float64 on the CPU."""
        total: _Samples | _Rows = self._total()
        return total.means()

    def _total(self) -> Any:
        first, second = self._halves()
        return first.plus(second)

    def regression(self, prior: Tensor, solve: Solve | None = solution_of) -> LeastSquares:
        """Return the problem of y from x, each about its mean: a shift of the output is free.

        The ridge is the one that is best when one half of the images is fitted and the error on the other is measured.

        Args:
            prior: weights of shape (O, D), float64.
            solve: fits a layer to half of the images; None leaves the ridge at its default.
        """
        total: LeastSquares = self._total().regression(prior)
        if solve is None:
            return total
        fit, check = (half.regression(prior) for half in self._halves())
        return total.with_ridge(best_ridge(fit, check, solve))


@dataclass(frozen=True)
class _Samples:
    """Means of samples and sums of products about them, float64 on the CPU."""

    number: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    def plus(self, other: "_Samples | _Rows") -> "_Samples":
        """Return both together; nothing cancels (Chan, Golub and LeVeque, "Updating formulae", 1979)."""
        other = other.summed()
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

    def summed(self) -> "_Samples":
        return self

    def means(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def regression(self, prior: Tensor) -> Regression:
        n = max(self.number, 1)
        return Regression(prior, self.xx / n, self.yx / n, self.yy / n)


@dataclass(frozen=True)
class _Rows:
    """The samples themselves: x (n, D) and y (n, O), on the device of the layer."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, patches: Tensor, targets: Tensor) -> "_Rows":
        return cls(*(part.movedim(1, 2).flatten(0, 1) for part in (patches, targets)))

    def plus(self, other: "_Rows") -> "_Rows":
        return _Rows(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def summed(self) -> _Samples:
        # In float64, so that what the products make up is positive semi-definite far below the smallest ridge.
        x, y = self._centres()
        u, v = self.x.double() - x, self.y.double() - y
        return _Samples(len(u), *(part.cpu() for part in (x, y, u.mT @ u, v.mT @ u, v.square().sum(0))))

    def means(self) -> tuple[Tensor, Tensor]:
        x, y = self._centres()
        return x.cpu(), y.cpu()

    def regression(self, prior: Tensor) -> SampleRegression:
        x, y = self.means()
        return SampleRegression.of(prior, self.x.cpu().double() - x, self.y.cpu().double() - y)

    def _centres(self) -> tuple[Tensor, Tensor]:
        x, y = (part.double().sum(0) / max(len(part), 1) for part in (self.x, self.y))
        return x, y
