"""CP decomposition and the CP block."""

import itertools

import pytest
import torch
from convolutions import GEOMETRIES
from torch import Tensor, nn

from norton_det.decompositions import CPConv2d, set_implementation
from norton_det.decompositions import cp_als as als
from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.errors import DataError, UsageError


def nmse(weight: Tensor, factors: CPFactors) -> Tensor:
    error = (weight.double() - factors.reconstruct()).flatten(1).square().sum(1)
    return error / weight.double().flatten(1).square().sum(1)


def planted(filters: int, inputs: int, kh: int, kw: int, rank: int) -> Tensor:
    shapes = ((filters, n, rank) for n in (inputs, kh, kw))
    return CPFactors(*(torch.randn(shape, dtype=torch.float64) for shape in shapes)).reconstruct()


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_block_equals_convolution_with_reconstructed_kernel(geometry: dict, rank: int) -> None:
    conv = nn.Conv2d(5, 7, **geometry, dtype=torch.float64)
    block = CPConv2d.from_conv(conv, rank)
    dense = block.to_dense()
    x = torch.randn(2, 5, 13, 11, dtype=torch.float64)
    torch.testing.assert_close(dense.weight, block.factors().reconstruct())
    torch.testing.assert_close(block(x), dense(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block(x[0]), dense(x[0]), rtol=1e-10, atol=1e-10)
    for name in ("stride", "padding", "dilation", "kernel_size", "padding_mode", "in_channels", "out_channels"):
        assert getattr(dense, name) == getattr(conv, name), name
    assert (dense.bias is None) == (conv.bias is None)
    if rank == 20:  # at least min(Kh * Kw, I * Kw, I * Kh): exact
        torch.testing.assert_close(block(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("implementation", ["depthwise", "merged", "dense"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_implementations_have_equal_outputs_and_gradients(geometry: dict, implementation: str, rank: int) -> None:
    block = CPConv2d.from_conv(nn.Conv2d(5, 7, **geometry, dtype=torch.float64), rank)
    x = torch.randn(2, 5, 13, 11, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    expected = block(x)
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    set_implementation(nn.Sequential(block), implementation)
    got = block(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(got.square().sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block(x[0]), expected[0], rtol=1e-10, atol=1e-10)


def test_an_unknown_implementation() -> None:
    with pytest.raises(
        UsageError, match="unknown implementation 'fast'; expected one of: factored, depthwise, merged, dense"
    ):
        set_implementation(nn.Sequential(), "fast")


@pytest.mark.parametrize(("rank", "inputs", "kernel"), [(1, 16, 3), (2, 16, 3), (3, 32, 3), (2, 4, 3), (3, 20, 5)])
def test_planted_filters_are_recovered(rank: int, inputs: int, kernel: int) -> None:
    weight = planted(24, inputs, kernel, kernel, rank)
    assert nmse(weight, cp_decompose(weight, rank, tolerance=1e-6)).median() < 1e-8


def test_error_falls_with_rank_to_zero() -> None:
    weight = torch.randn(32, 24, 3, 3)
    errors = [nmse(weight, cp_decompose(weight, rank)).mean().item() for rank in range(1, 10)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] == 0
    # Rank 1 of a random filter keeps some of it, and never more than the best matrix approximation would.
    singular = torch.linalg.svdvals(weight.double().flatten(2))
    floor = 1 - (singular[:, 0].square() / singular.square().sum(1)).mean().item()
    assert floor <= errors[0] < 1


@pytest.mark.parametrize("shape", [(4, 16, 3, 3), (4, 2, 3, 5), (4, 2, 5, 3), (4, 1, 3, 3)])
def test_full_rank_is_bitwise_exact(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    _, i, h, w = shape
    for rank in (min(h * w, i * w, i * h), 25):
        assert torch.equal(cp_decompose(weight, rank).reconstruct().float(), weight)


def test_zero_filters_have_zero_factors() -> None:
    weight = torch.randn(5, 8, 3, 3)
    weight[[1, 4]] = 0
    for rank in (2, 9):
        factors = cp_decompose(weight, rank)
        assert all((factor[[1, 4]] == 0).all() for factor in factors)
        assert factors.reconstruct()[0].norm() > 0
        assert (cp_decompose(torch.zeros(3, 8, 3, 3), rank).reconstruct() == 0).all()


def test_nonfinite_filters_are_named() -> None:
    weight = torch.randn(5, 8, 3, 3)
    weight[1, 0, 0, 0], weight[3, 2, 1, 1] = float("nan"), float("inf")
    with pytest.raises(DataError, match=r"filters \[1, 3\] are not finite"):
        cp_decompose(weight, 2)


def test_same_seed_same_bits() -> None:
    weight = torch.randn(16, 8, 3, 3)
    first, again, other = (cp_decompose(weight, 3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_fitted_in_double(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(8, 6, 3, dtype=dtype)
    block = CPConv2d.from_conv(conv, 3)
    assert {p.dtype for p in block.parameters()} == {dtype}
    exact = nmse(conv.weight, cp_decompose(conv.weight, 3)).mean()
    assert nmse(conv.weight, block.factors()).mean() < exact + 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64)
    error = nmse(weight, cp_decompose(weight, 2))
    torch.testing.assert_close(nmse(weight * scale, cp_decompose(weight * scale, 2)), error, rtol=1e-3, atol=1e-6)


def test_cancelling_terms_are_bounded() -> None:
    # a o a o b + a o b o a + b o a o a has rank 3 and is approached by rank 2 only with terms that grow without bound.
    a, b = torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64)
    outer = [torch.einsum("i,h,w->ihw", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a))]
    weight = torch.stack(outer).sum(0).expand(4, 3, 3, 3)
    factors = cp_decompose(weight, 2, max_iterations=2000, tolerance=1e-9)
    energy = torch.stack([f.square().sum(1) for f in factors]).prod(0).sum(1) / weight.flatten(1).square().sum(1)
    assert 1 < energy.max() <= 1 / als.RIDGE * 1.001
    assert nmse(weight, factors).max() < 0.1


def test_collinear_filters_survive() -> None:
    # Rank-1 filters fitted with rank 4: the normal equations are singular.
    weight = planted(6, 8, 3, 3, 1)
    factors = cp_decompose(weight, 4)
    assert all(factor.isfinite().all() for factor in factors)
    assert nmse(weight, factors).max() < 1e-6


def test_refused() -> None:
    with pytest.raises(UsageError, match="rank is 0"):
        cp_decompose(torch.randn(2, 2, 3, 3), 0)
    with pytest.raises(UsageError, match="groups=4"):
        CPConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4), 1)
