"""The least-squares problem of fitting a layer to target outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

RIDGES = (1e2, 1.0, 1e-2, 1e-4)
"""Candidates, in units of the mean diagonal of the second moment; the first nearly returns the prior."""
NEGLIGIBLE = 1e-5
"""Fraction of the outputs' variance: errors that differ by less are equal."""


class LeastSquares(ABC):
    """The W that minimises ``E|W x - y|^2 + ridge |W - prior|^2``, row by row; all in float64.

    Where ``y = prior x`` the solution is the prior, for any number of samples and any rank of their second moment. Up
    to a constant the objective is ``|(W - solution) metric^1/2|^2``.

    Attributes:
        prior: the solution without data, of shape (O, D).
        power: ``E y^2`` of each output, of shape (O,).
        ridge: in units of the mean diagonal of the second moment of x.
    """

    prior: Tensor
    power: Tensor
    ridge: float

    @property
    @abstractmethod
    def metric(self) -> Tensor:
        """Return the second moment of x with the ridge on its diagonal, positive definite, of shape (D, D)."""

    @abstractmethod
    def solution(self) -> Tensor:
        """Return the best W, of shape (O, D)."""

    @abstractmethod
    def error(self, weight: Tensor) -> Tensor:
        """Return ``E|W x - y|^2`` of each output for ``weight`` (O, D), of shape (O,)."""

    @abstractmethod
    def predicted(self, weight: Tensor) -> Tensor:
        """Return ``W metric W^T`` for ``weight`` (O, D), of shape (O, O): the second moment of what it predicts."""

    @abstractmethod
    def among(self, columns: Tensor, prior: Tensor) -> "LeastSquares":
        """Return the problem of the same outputs from some of the inputs, int64 (D',), with a prior (O, D')."""

    def with_ridge(self, ridge: float) -> Self:
        """Return the problem with another ridge."""
        problem: Any = self
        return replace(problem, ridge=ridge)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Regression(LeastSquares):
    """The problem from second moments.

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

    def predicted(self, weight: Tensor) -> Tensor:
        """Return ``W metric W^T`` for ``weight`` (O, D), of shape (O, O)."""
        return weight @ self.metric @ weight.mT

    def among(self, columns: Tensor, prior: Tensor) -> "Regression":
        """Return the problem of the same outputs from some of the inputs."""
        second, cross = self.second[columns][:, columns], self.cross[:, columns]
        return replace(self, prior=prior, second=second, cross=cross)


@dataclass(frozen=True)
class SampleRegression(LeastSquares):
    """The problem from n samples, fewer than inputs: ``(D, D)`` is not formed, a system of size n is solved.

    ``(X^T X + r)^-1 X^T = X^T (X X^T + r)^-1``, so that the solution is that of :class:`Regression`.

    Attributes:
        prior: as of :class:`LeastSquares`.
        x: inputs about their mean, of shape (n, D).
        y: outputs about their mean, of shape (n, O).
        gram: ``x x^T``, of shape (n, n).
        power: as of :class:`LeastSquares`.
        ridge: as of :class:`LeastSquares`.

    Example:
        >>> x = torch.randn(10, 30, dtype=torch.float64)
        >>> y = torch.randn(10, 2, dtype=torch.float64)
        >>> prior = torch.zeros(2, 30, dtype=torch.float64)
        >>> samples = SampleRegression.of(prior, x, y)
        >>> moments = Regression(prior, x.mT @ x / 10, y.mT @ x / 10, y.square().mean(0))
        >>> bool((samples.solution() - moments.solution()).abs().max() < 1e-8)
        True
    """

    prior: Tensor
    x: Tensor
    y: Tensor
    gram: Tensor
    power: Tensor
    ridge: float = RIDGES[-1]

    @classmethod
    def of(cls, prior: Tensor, x: Tensor, y: Tensor) -> Self:
        """Return the problem of y from x, which are about their means."""
        return cls(prior, x, y, x @ x.mT, y.square().sum(0) / max(len(y), 1))

    @property
    def _damping(self) -> float:
        """Return the ridge as it is added to the diagonal of the metric."""
        size = max(self.x.numel(), 1)
        return max(self.ridge * self.gram.trace().item() / size, 1e-12)

    @property
    def metric(self) -> Tensor:
        """Return the second moment of x with the ridge on its diagonal, of shape (D, D)."""
        metric = self.x.mT @ self.x / max(len(self.x), 1)
        metric.diagonal().add_(self._damping)
        return metric

    def solution(self) -> Tensor:
        """Return the best W, of shape (O, D)."""
        damped = self.gram.clone()
        damped.diagonal().add_(len(damped) * self._damping)
        residual = self.y - self.x @ self.prior.mT
        return self.prior + torch.cholesky_solve(residual, torch.linalg.cholesky(damped)).mT @ self.x

    def error(self, weight: Tensor) -> Tensor:
        """Return ``E|W x - y|^2`` of each output for ``weight`` (O, D), of shape (O,)."""
        return (self.x @ weight.mT - self.y).square().sum(0) / max(len(self.x), 1)

    def predicted(self, weight: Tensor) -> Tensor:
        """Return ``W metric W^T`` for ``weight`` (O, D), of shape (O, O)."""
        outputs = self.x @ weight.mT
        return outputs.mT @ outputs / max(len(self.x), 1) + self._damping * (weight @ weight.mT)

    def among(self, columns: Tensor, prior: Tensor) -> "SampleRegression":
        """Return the problem of the same outputs from some of the inputs."""
        return replace(self.of(prior, self.x[:, columns], self.y), ridge=self.ridge)


Solve = Callable[[LeastSquares], Tensor]
"""Returns weights (O, D) that are fitted to a problem."""


def solution_of(problem: LeastSquares) -> Tensor:
    """Return the best W: the fit without a constraint."""
    return problem.solution()


def best_ridge(fit: LeastSquares, check: LeastSquares, solve: Solve = solution_of) -> float:
    """Return the ridge of :data:`RIDGES` whose fit to ``fit`` has the smallest error on ``check``.

    Errors that differ by less than :data:`NEGLIGIBLE` of the outputs' variance are equal: rounding decides nothing. Of
    equal errors the largest ridge is taken, which changes least.

    Args:
        fit: from some samples.
        check: from samples of other images.
        solve: what is fitted, in the metric that the ridge makes. The ridge that is best for weights without constraint
            need not be that for a decomposition.
    """
    errors = [check.error(solve(fit.with_ridge(ridge))).sum().nan_to_num(float("inf")).item() for ridge in RIDGES]
    limit = min(errors) + NEGLIGIBLE * check.power.sum().item()
    return next(ridge for ridge, error in zip(RIDGES, errors, strict=True) if error <= limit)
