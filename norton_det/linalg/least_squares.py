"""The least-squares problem of fitting a layer to target outputs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RIDGES = (1e2, 1.0, 1e-2, 1e-4)
"""Candidates, in units of the mean diagonal of the second moment; the first nearly returns the prior."""
NEGLIGIBLE = 1e-5
"""Fraction of the outputs' variance: errors that differ by less are equal."""


@dataclass(frozen=True)
class Regression:
    """The W that minimises ``E|W x - y|^2 + ridge |W - prior|^2``, row by row; all in float64.

    Where ``y = prior x`` the solution is the prior, for any number of samples and any rank of their second moment. Up
    to a constant the objective is ``|(W - solution) metric^1/2|^2``.

    Attributes:
        prior: the solution without data, of shape (O, D).
        second: ``E x x^T``, of shape (D, D).
        cross: ``E y x^T``, of shape (O, D).
        power: ``E y^2`` of each output, of shape (O,).
        ridge: in units of the mean diagonal of ``second``.

    Example:
        >>> x = torch.randn(100, 3, dtype=torch.float64)
        >>> weight = torch.ones(2, 3, dtype=torch.float64)
        >>> y = x @ weight.mT
        >>> moments = (x.mT @ x / 100, y.mT @ x / 100, y.square().mean(0))
        >>> fit = Regression(torch.zeros(2, 3, dtype=torch.float64), *moments)
        >>> bool((fit.solution() - weight).abs().max() < 1e-2)
        True
    """

    prior: Tensor
    second: Tensor
    cross: Tensor
    power: Tensor
    ridge: float = RIDGES[-1]

    @property
    def metric(self) -> Tensor:
        """Return ``second`` with the ridge on its diagonal, positive definite, of shape (D, D)."""
        metric = self.second.clone()
        metric.diagonal().add_(max(self.ridge * self.second.diagonal().mean().item(), 1e-12))
        return metric

    def solution(self) -> Tensor:
        """Return the best W, of shape (O, D)."""
        # A correction of the prior: where none is needed, rounding changes nothing.
        residual = self.cross - self.prior @ self.second
        return self.prior + torch.cholesky_solve(residual.mT, torch.linalg.cholesky(self.metric)).mT

    def error(self, weight: Tensor) -> Tensor:
        """Return ``E|W x - y|^2`` of each output for ``weight`` (O, D), of shape (O,)."""
        return self.power + (weight * (weight @ self.second - 2 * self.cross)).sum(1)


Solve = Callable[[Regression], Tensor]
"""Returns weights (O, D) that are fitted to a regression."""


def best_ridge(fit: Regression, check: Regression, solve: Solve = Regression.solution) -> float:
    """Return the ridge of :data:`RIDGES` whose fit to ``fit`` has the smallest error on ``check``.

    Errors that differ by less than :data:`NEGLIGIBLE` of the outputs' variance are equal: rounding decides nothing. Of
    equal errors the largest ridge is taken, which changes least.

    Args:
        fit: from some samples.
        check: from samples of other images.
        solve: what is fitted, in the metric that the ridge makes. The ridge that is best for weights without constraint
            need not be that for a decomposition.
    """
    errors = [check.error(solve(replace(fit, ridge=ridge))).sum().nan_to_num(float("inf")).item() for ridge in RIDGES]
    limit = min(errors) + NEGLIGIBLE * check.power.sum().item()
    return next(ridge for ridge, error in zip(RIDGES, errors, strict=True) if error <= limit)
