"""Conjugate gradients: many systems at once."""

import pytest
import torch
from torch import Tensor

from norton_det.linalg.conjugate_gradients import conjugate_gradients

SYSTEMS, SIZE, COLUMNS = 4, 6, 2


@pytest.fixture
def matrices() -> Tensor:
    """Symmetric positive definite, of very different scales."""
    roots = torch.randn(SYSTEMS, SIZE, SIZE, dtype=torch.float64)
    return (roots @ roots.mT + torch.eye(SIZE)) * torch.logspace(-3, 3, SYSTEMS).view(-1, 1, 1)


def test_as_many_steps_as_unknowns_solve(matrices: Tensor) -> None:
    right = torch.randn(SYSTEMS, SIZE, 1, dtype=torch.float64)
    start = torch.randn_like(right)
    expected = torch.linalg.solve(matrices, right)
    for scale in (1.0, 1e3):  # of the preconditioner: no matter
        x = conjugate_gradients(
            lambda x: matrices @ x, right, start, lambda r, scale=scale: scale * r, steps=SIZE + 2, dims=(1, 2)
        )
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-9)


def test_an_exact_preconditioner_needs_one_step(matrices: Tensor) -> None:
    right = torch.randn(SYSTEMS, SIZE, COLUMNS, dtype=torch.float64)
    x = conjugate_gradients(
        lambda x: matrices @ x,
        right,
        torch.zeros_like(right),
        lambda r: torch.linalg.solve(matrices, r),
        steps=1,
        dims=(1, 2),
    )
    torch.testing.assert_close(x, torch.linalg.solve(matrices, right))


def test_systems_are_independent_and_the_energy_never_rises(matrices: Tensor) -> None:
    right = torch.randn(SYSTEMS, SIZE, 1, dtype=torch.float64)
    start = torch.zeros_like(right)

    def solve(which: slice, steps: int) -> Tensor:
        return conjugate_gradients(
            lambda x: matrices[which] @ x, right[which], start[which], torch.clone, steps=steps, dims=(1, 2)
        )

    def energy(x: Tensor) -> Tensor:
        return (x * (matrices @ x / 2 - right)).sum((1, 2))

    energies = torch.stack([energy(solve(slice(None), steps)) for steps in range(6)])
    assert (energies[1:] <= energies[:-1] + 1e-12 * energies[-1].abs()).all()
    alone = torch.cat([solve(slice(i, i + 1), 3) for i in range(SYSTEMS)])
    torch.testing.assert_close(solve(slice(None), 3), alone, rtol=1e-12, atol=1e-12)


def test_a_solved_and_a_singular_system_stay_finite() -> None:
    matrix = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    right = torch.tensor([4.0, 0.0], dtype=torch.float64)
    for start in (torch.tensor([2.0, 5.0]), torch.tensor([0.0, 5.0])):
        x = conjugate_gradients(matrix.mv, right, start.double(), torch.clone, steps=4, dims=(0,))
        assert x.tolist() == [2.0, 5.0]
