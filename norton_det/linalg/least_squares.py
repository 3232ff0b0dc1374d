"""The least-squares problem behind every fit of a layer to what it is to put out."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

RIDGES = (1e2, 1.0, 1e-2, 1e-4)
"""Ridges to choose from, of the mean diagonal of the second moment; the first hardly leaves the prior."""


@dataclass(frozen=True)
class Regression:
    """Find W that minimises ``E|W x - y|^2 + ridge |W - prior|^2``, row by row; all in float64.

    Where ``y = prior x`` the solution is the prior itself, however few the samples and however singular their second
    moment. Up to a constant the objective is ``|(W - solution) metric^1/2|^2``.

    Attributes:
        prior: the weights that would be taken without data, of shape (O, D).
        second: ``E x x^T``, of shape (D, D).
        cross: ``E y x^T``, of shape (O, D).
        power: ``E y^2`` of each output, of shape (O,).
        ridge: in units of the mean diagonal of ``second``.
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
        # Written as a correction of the prior: rounding cannot touch what needs none.
        residual = self.cross - self.prior @ self.second
        return self.prior + torch.cholesky_solve(residual.mT, torch.linalg.cholesky(self.metric)).mT

    def error(self, weight: Tensor) -> Tensor:
        """Return ``E|W x - y|^2`` of each output for ``weight`` (O, D), of shape (O,)."""
        return self.power + (weight * (weight @ self.second - 2 * self.cross)).sum(1)


def best_ridge(fit: Regression, check: Regression) -> float:
    """Return the ridge of :data:`RIDGES` whose solution of ``fit`` errs least on ``check``: samples of other images.

    Where ``check`` cannot tell, the largest, which changes least.
    """
    errors = [check.error(replace(fit, ridge=ridge).solution()).sum().item() for ridge in RIDGES]
    return RIDGES[errors.index(min(errors))]
