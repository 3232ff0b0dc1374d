"""A least-squares problem from samples is the one from their second moments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.linalg.least_squares import RIDGES, Regression, SampleRegression, best_ridge


def both(samples: int, inputs: int, outputs: int, ridge: float, seed: int) -> tuple[SampleRegression, Regression]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, size, generator=generator, dtype=torch.float64) for size in (inputs, outputs))
    x, y = x - x.mean(0), y - y.mean(0)
    prior = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    moments = Regression(prior, x.mT @ x / samples, y.mT @ x / samples, y.square().mean(0), ridge)
    return SampleRegression.of(prior, x, y).with_ridge(ridge), moments


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 5), st.sampled_from(RIDGES), st.integers(0, 99))
def test_all_of_it_is_the_same(samples: int, inputs: int, outputs: int, ridge: float, seed: int) -> None:
    ours, other = both(samples, inputs, outputs, ridge, seed)
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    columns = torch.randperm(inputs)[: max(1, inputs // 2)]
    exact = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(ours.metric, other.metric, **exact)
    torch.testing.assert_close(ours.solution(), other.solution(), **exact)
    torch.testing.assert_close(ours.error(weight), other.error(weight), **exact)
    torch.testing.assert_close(ours.predicted(weight), other.predicted(weight), **exact)
    torch.testing.assert_close(ours.power, other.power, **exact)
    parts = [problem.among(columns, weight[:, columns]).solution() for problem in (ours, other)]
    torch.testing.assert_close(*parts, **exact)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_ridge_is_chosen(seed: int) -> None:
    (fit, other), (check, held_out) = (both(20, 15, 3, RIDGES[-1], number) for number in (seed, seed + 100))
    assert best_ridge(fit, check) == best_ridge(other, held_out)
