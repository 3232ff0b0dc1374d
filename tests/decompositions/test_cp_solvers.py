"""Solvers of CP, and factors from and to tensorly."""

import numpy as np
import pytest
import tensorly as tl
import torch
from convolutions import GEOMETRIES
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac
from torch import Tensor, nn

import norton_det as nd
from norton_det.decompositions import DECOMPOSITIONS, SOLVERS, CPConv2d, TuckerConv2d
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.errors import DataError, UsageError


def nmse(weight: Tensor, factors: CPFactors) -> Tensor:
    error = (weight.double() - factors.reconstruct()).flatten(1).square().sum(1)
    return error / weight.double().flatten(1).square().sum(1)


def planted(filters: int, inputs: int, rank: int) -> Tensor:
    shapes = ((filters, n, rank) for n in (inputs, 3, 3))
    return CPFactors(*(torch.randn(shape, dtype=torch.float64) for shape in shapes)).reconstruct()


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize(("inputs", "rank"), [(16, 1), (8, 2), (1, 1), (1, 3)])
def test_every_solver_fits_filters(solver: str, inputs: int, rank: int) -> None:
    weight = torch.randn(6, inputs, 3, 3)
    weight[2] = 0
    factors = SOLVERS[solver](weight, rank, seed=3)
    assert [factor.shape for factor in factors] == [(6, inputs, rank), (6, 3, rank), (6, 3, rank)]
    assert all(factor.dtype == torch.float64 and factor.isfinite().all() for factor in factors)
    assert not any(factor[2].any() for factor in factors)
    alive = [0, 1, 3, 4, 5]
    error = nmse(weight[alive], CPFactors(*(factor[alive] for factor in factors)))
    assert (error < (1e-6 if (inputs, rank) == (1, 3) else 1)).all()
    again, other = SOLVERS[solver](weight, rank, seed=3), SOLVERS[solver](weight, rank, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(factors, again, strict=True))
    assert solver == "als" or not torch.equal(factors.a, other.a)


def test_tensorly_fits_as_published() -> None:
    weight = planted(6, 12, 1)
    factors = SOLVERS["tensorly"](weight, 1, seed=0)
    assert (nmse(weight, factors) < 1e-8).all()
    # A filter's fit is one call of parafac, whatever the other filters.
    weight = torch.randn(5, 12, 3, 3)
    factors = SOLVERS["tensorly"](weight, 2, seed=7)
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((7, 3))))
    _, modes = parafac(weight[3].double().numpy(), 2, n_iter_max=300, init="random", random_state=random)
    for factor, mode in zip(factors, modes, strict=True):
        assert np.array_equal(factor[3].numpy(), mode)
    alone = SOLVERS["tensorly"](weight[:1], 2, seed=7)
    assert all(torch.equal(a[:1], b) for a, b in zip(factors, alone, strict=True))
    # Ours is at least as near on average.
    ours = SOLVERS["als"](weight, 2, seed=7)
    assert nmse(weight, ours).mean() <= nmse(weight, factors).mean() * 1.001


def test_tensorlys_backend_stays() -> None:
    before = tl.get_backend()
    with tl.backend_context("pytorch"):
        SOLVERS["tensorly"](torch.randn(2, 4, 3, 3), 1, seed=0)
        CPConv2d(4, 2, 3, 1).to_cp_tensors()
        assert tl.get_backend() == "pytorch"
    assert tl.get_backend() == before


def test_filters_without_a_fit_are_named() -> None:
    weight = torch.zeros(4, 8, 3, 3)
    weight[0] = torch.randn(8, 3, 3)
    weight[1, 0, 0, 0] = weight[3, 5, 1, 2] = 1  # of rank 1: the normal equations of rank 2 are singular
    message = (
        r"parafac found no finite factors of filters \[1, 3\] at rank 2 .*; expected a lower rank, or solver 'als'"
    )
    with pytest.raises(UsageError, match=message):
        SOLVERS["tensorly"](weight, 2, seed=0)
    weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"weights of filters \[0\] are not finite"):
        SOLVERS["tensorly"](weight, 1, seed=0)
    with pytest.raises(UsageError, match="rank is 0; expected at least 1"):
        SOLVERS["tensorly"](weight, 0, seed=0)


def test_factors_that_overflow_are_named() -> None:
    # a o a o b + a o b o a + b o a o a: without a ridge, the two terms that approach it grow without bound.
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    conv = nn.Conv2d(3, 4, 3, dtype=torch.float16)
    with torch.no_grad():
        conv.weight[3] = 5e4 * sum(torch.einsum("i,h,w->ihw", *v) for v in ((a, a, b), (a, b, a), (b, a, a)))
    with pytest.raises(DataError, match=r"factors in torch.float16 of filters \[3\] are not finite"):
        CPConv2d.from_conv(conv, 2, solver="tensorly")
    assert CPConv2d.from_conv(conv, 2).kernel().isfinite().all()


@pytest.mark.parametrize("kind", list(DECOMPOSITIONS))
def test_an_unknown_solver(kind: str) -> None:
    block = DECOMPOSITIONS[kind]
    expected = ", ".join(block.solvers)
    with pytest.raises(UsageError, match=f"solver 'x'; expected one of: {expected}"):
        block.from_conv(nn.Conv2d(3, 4, 3), 1, solver="x")
    with pytest.raises(UsageError, match=f"solver 'x'; expected one of: {expected}"):
        nd.compress(None, arch="resnet56_cifar", decomposition=kind, solver="x")


def test_only_cp_is_fitted_by_tensorly() -> None:
    with pytest.raises(UsageError, match="unknown Tucker-2 solver 'tensorly'; expected one of: als"):
        TuckerConv2d.from_conv(nn.Conv2d(3, 4, 3), 1, solver="tensorly")
    net = nd.build(nd.Spec("resnet56_cifar", 10))
    with pytest.raises(UsageError, match="unknown Tucker-2 solver 'tensorly'; expected one of: als"):
        nd.decompose(net, "resnet56_cifar", 1, method="tucker2", solver="tensorly")


def test_the_solver_is_recorded() -> None:
    net = nd.build(nd.Spec("resnet56_cifar", 10))
    fitted, spec = nd.decompose(net, "resnet56_cifar", {"layer1.0.conv1": 1}, solver="tensorly", seed=5)
    assert {layer["solver"] for layer in spec.provenance["decompose"]["layers"].values()} == {"tensorly"}
    expected = SOLVERS["tensorly"](net.layer1[0].conv1.weight, 1, seed=5)
    torch.testing.assert_close(fitted.layer1[0].conv1.factors(), expected, rtol=1e-6, atol=0)
    _, spec = nd.compress(net, arch="resnet56_cifar", rank={"layer1.0.conv1": 1}, solver="tensorly")
    assert {layer["solver"] for layer in spec.provenance["decompose"]["layers"].values()} == {"tensorly"}
    _, spec = nd.decompose(net, "resnet56_cifar", {"layer1.0.conv1": 1})
    assert {layer["solver"] for layer in spec.provenance["decompose"]["layers"].values()} == {"als"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES[:6], ids=str)
def test_a_block_comes_back_from_cp_tensors(geometry: dict, dtype: torch.dtype) -> None:
    conv = nn.Conv2d(5, 7, **geometry, dtype=dtype)
    block = CPConv2d.from_conv(conv, 3)
    tensors = block.to_cp_tensors()
    assert len(tensors) == 7
    assert all(isinstance(filter_, CPTensor) and filter_.rank == 3 for filter_ in tensors)
    options = {name: value for name, value in geometry.items() if name not in ("kernel_size", "bias")}
    again = CPConv2d.from_cp_tensors(tensors, bias=block.bias, **options)
    assert repr(again) == repr(block)
    assert again.state_dict().keys() == block.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in block.state_dict().items())
    assert {(p.dtype, p.requires_grad) for p in again.parameters()} == {(dtype, True)}
    tensors[0].factors[0].zero_()  # copies: neither block changes
    assert block.factors().a[0].any()
    assert again.factors().a[0].any()


def test_tensorly_reconstructs_the_dense_kernel() -> None:
    block = CPConv2d.from_conv(nn.Conv2d(5, 7, (3, 2), dtype=torch.float64), 2)
    with tl.backend_context("pytorch"):
        kernel = torch.stack([tl.cp_to_tensor(filter_) for filter_ in block.to_cp_tensors()])
    torch.testing.assert_close(kernel, block.to_dense().weight.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_cp_tensors_come_back_from_a_block(backend: str) -> None:
    with tl.backend_context(backend):
        filters = [tl.random.random_cp((5, 3, 2), rank=2, random_state=i) for i in range(4)]
        kernels = [torch.as_tensor(tl.cp_to_tensor(filter_)) for filter_ in filters]
    assert all((torch.as_tensor(filter_.weights) != 1).all() for filter_ in filters)
    block = CPConv2d.from_cp_tensors(filters)
    assert (block.in_channels, block.out_channels, block.kernel_size, block.rank) == (5, 4, (3, 2), 2)
    assert block.bias is None
    assert block.pointwise.weight.dtype == kernels[0].dtype == torch.float64
    torch.testing.assert_close(block.to_dense().weight.detach(), torch.stack(kernels), rtol=1e-12, atol=1e-12)
    for filter_, given in zip(block.to_cp_tensors(), filters, strict=True):
        a, b, c = (torch.as_tensor(factor) for factor in given.factors)
        expected = (a * torch.as_tensor(given.weights), b, c)
        for factor, product in zip(filter_.factors, expected, strict=True):
            torch.testing.assert_close(factor, product, rtol=1e-12, atol=1e-12)


def random_modes(rank: int = 2, inputs: int = 5) -> list[Tensor]:
    return [torch.randn(size, rank) for size in (inputs, 3, 3)]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([], "there is no CP tensor"),
        ([torch.ones(4, 2)], "filter 0 is a Tensor; expected weights and three factors"),
        ([(None, [torch.ones(0, 2), *random_modes()[1:]])], r"filter 0 has factors \(0, 2\)"),
        (
            [(None, random_modes()), (None, random_modes(3))],
            r"filter 1 has factors \(5, 3\), \(3, 3\), \(3, 3\); filter 0 has \(5, 2\), \(3, 2\), \(3, 2\)",
        ),
        ([(None, random_modes()), (None, random_modes(2, 4))], r"filter 1 has factors \(4, 2\)"),
        (
            [(None, random_modes()[:2])],
            r"filter 0 has factors \(5, 2\), \(3, 2\) and weights None; expected the shapes",
        ),
        ([(None, [*random_modes()[:2], torch.ones(3, 4)])], r"filter 0 has factors .*\(3, 4\) and weights None"),
        ([(torch.ones(3), random_modes())], r"filter 0 has factors .* and weights \(3,\); expected the shapes"),
        ([(None, [factor.long() for factor in random_modes()])], "filter 0 has dtype torch.int64; expected a floating"),
    ],
)
def test_cp_tensors_that_do_not_fit(filters: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CPConv2d.from_cp_tensors(filters)


def test_other_arguments_of_cp_tensors_are_checked() -> None:
    with pytest.raises(UsageError, match=r"bias has shape \(3,\); expected \(1,\)"):
        CPConv2d.from_cp_tensors([(None, random_modes())], bias=torch.zeros(3))
    modes = random_modes()
    modes[1][0, 0] = float("inf")
    with pytest.raises(DataError, match=r"factors in torch.float32 of filters \[1\] are not finite"):
        CPConv2d.from_cp_tensors([(None, random_modes()), (None, modes)])
