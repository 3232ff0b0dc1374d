"""Low-rank layers: the block, its fits, and networks of it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refused
from convolutions import GEOMETRIES
from correlated import regression
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statistics_of_norms import with_statistics
from torch import Tensor, nn

import norton_det as nd
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import narrow
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.decompositions import DECOMPOSITIONS, LowRank, set_implementation
from norton_det.decompositions.svd import LowRankFactors, fit_output, truncated_svd
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.errors import DataError, UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.models import ARCHITECTURES
from norton_det.structure.describe import describe
from norton_det.structure.settings import decomposable_layers, dense_network, spec_from_configuration

LAYERS: list[dict[str, Any]] = [{"kernel_size": 1}, *GEOMETRIES, {}, {"bias": False}]
"""Convolutions by their geometry; linear layers, which have none."""
BOTH = ("conv", "linear")


def layer_of(options: dict[str, Any], inputs: int = 5, outputs: int = 7) -> nn.Conv2d | nn.Linear:
    kind = nn.Conv2d if "kernel_size" in options else nn.Linear
    return kind(inputs, outputs, **options, dtype=torch.float64)


def inputs_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    shape = (2, 5, 13, 11) if isinstance(layer, nn.Conv2d) else (2, 3, 5)
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("rank", [2, 100])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_block_is_the_layer_with_its_weight(options: dict[str, Any], rank: int) -> None:
    layer = layer_of(options)
    block, x = LowRank.from_layer(layer, rank), inputs_of(layer)
    dense = block.to_dense()
    assert repr(dense) == repr(layer)
    expected = dense(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    for implementation in implementations_of(block):
        torch.testing.assert_close(expand(block, implementation)(x), expected, rtol=1e-10, atol=1e-10)
    set_implementation(block, "dense")
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    if rank == 100:
        assert block.rank == min(7, layer.weight[0].numel())
        torch.testing.assert_close(expected, layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", BOTH)
def test_both_implementations_have_the_same_gradients(kind: str) -> None:
    layer = layer_of({"kernel_size": 3, "stride": 2} if kind == "conv" else {})
    block, x = LowRank.from_layer(layer, 3), inputs_of(layer)
    gradients = []
    for implementation in ("factored", "dense"):
        set_implementation(block, implementation)
        gradients.append(torch.autograd.grad(block(x).square().sum(), list(block.parameters())))
    assert len(gradients[0]) == 3
    torch.testing.assert_close(*gradients)


SIDES = st.integers(1, 9)


@settings(max_examples=50, deadline=None)
@given(out=SIDES, inputs=SIDES, rank=SIDES, seed=st.integers(0, 999))
def test_no_matrix_of_the_rank_is_nearer(out: int, inputs: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator, dtype=torch.float64)
    rank = min(rank, out, inputs)
    factors = truncated_svd(weight, rank)
    left_out = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]  # Eckart and Young
    assert np.isclose((weight - factors.product()).norm() ** 2, (left_out**2).sum(), atol=1e-12)
    balanced = factors.balanced()
    torch.testing.assert_close(balanced.product(), factors.product())
    torch.testing.assert_close(balanced.a.norm(dim=1), balanced.b.norm(dim=0))


def test_a_term_without_effect_can_be_trained() -> None:
    linear = nn.Linear(4, 3)
    nn.init.ones_(linear.weight)  # of rank 1
    block = LowRank.from_layer(linear, 3)
    torch.testing.assert_close(block.weight(), linear.weight)
    block(torch.randn(8, 4)).square().sum().backward()
    assert all(part.weight.grad is not None for part in (block.reduce, block.expand))
    with torch.no_grad():
        for part in (block.reduce, block.expand):
            part.weight.sub_(part.weight.grad)
    assert np.linalg.matrix_rank(block.weight().detach().numpy(), tol=1e-4) > 1


def objective(problem: Regression, weight: Tensor) -> Tensor:
    """Return ``E|W x - y|^2 + ridge |W - prior|^2``, as the regression says it."""
    ridge = (problem.metric - problem.second).diagonal()[0]
    return problem.error(weight).sum() + ridge * (weight - problem.prior).square().sum()


def descended(problem: Regression, rank: int, seed: int) -> Tensor:
    """Return the weight to which gradients lead from random factors."""
    generator = torch.Generator().manual_seed(seed)
    (out, size) = problem.prior.shape
    b, a = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((out, rank), (rank, size))
    )
    optimiser = torch.optim.LBFGS([a, b], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(problem, b @ a)
        loss.backward()
        return loss

    optimiser.step(closure)
    return (b @ a).detach()


@settings(max_examples=20, deadline=None)
@given(
    out=st.integers(1, 6),
    size=st.integers(1, 8),
    rank=st.integers(1, 6),
    samples=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_the_fit_is_the_best_of_its_rank(out: int, size: int, rank: int, samples: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prior, other, mixing = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((out, size), (out, size), (size, size))
    )
    x = torch.randn(samples, size, generator=generator, dtype=torch.float64) @ mixing
    problem = regression(prior, x, x @ (prior + other).mT + torch.randn(samples, out, generator=generator).double())
    rank = min(rank, out, size)
    plain = truncated_svd(prior, rank)
    assert problem.error(fit_output(problem, plain).product()).sum() <= problem.error(plain.product()).sum()
    nothing = LowRankFactors(torch.zeros_like(plain.a), plain.b)  # what nearly any fit is better than
    fitted = fit_output(problem, nothing).product()
    assume(fitted.any())
    assert np.linalg.matrix_rank(fitted.numpy(), tol=1e-9 * float(fitted.norm())) <= rank
    scale = 1e-6 * float(objective(problem, torch.zeros_like(prior)))
    reached = min(float(objective(problem, descended(problem, rank, start))) for start in range(3))
    unlimited = float(objective(problem, problem.solution()))  # descent need not get as far as either
    assert unlimited - scale <= float(objective(problem, fitted)) <= reached + scale


@st.composite
def calibrated_layers(draw: st.DrawFn) -> tuple[nn.Conv2d | nn.Linear, int]:
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return nn.Linear(draw(SIDES), draw(SIDES), bias, dtype=torch.float64), draw(SIDES)
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    options: dict[str, Any] = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)), "bias": bias}
    options["padding_mode"] = draw(st.sampled_from(["zeros", "circular"]))
    sides = draw(st.integers(1, 4)), draw(SIDES)
    return nn.Conv2d(*sides, kernel, **options, dtype=torch.float64), draw(SIDES)


@settings(max_examples=20, deadline=None)
@given(case=calibrated_layers(), seed=st.integers(0, 999))
def test_outputs_of_a_refitted_layer_are_no_farther(case: tuple[nn.Conv2d | nn.Linear, int], seed: int) -> None:
    layer, rank = case
    torch.manual_seed(seed)
    shape = (6, layer.in_channels, 6, 7) if isinstance(layer, nn.Conv2d) else (60, layer.in_features)
    x = torch.randn(shape, dtype=torch.float64).cumsum(1)  # channels are correlated
    with torch.no_grad():
        target = layer(x)
        moments = Moments(layer, 0)
        moments.add(x, target)
        problem = moments.regression(layer.weight.flatten(1))
        block = LowRank.from_layer(layer, rank)

        def error() -> float:
            difference = (target - block(x)).transpose(0, 1).flatten(1)
            return float((difference - difference.mean(1, keepdim=True)).square().sum())

        before = error()
        block.refit(problem)
        assert error() <= before * (1 + 1e-9) + 1e-12 * float(target.square().sum())


def test_the_fit_sees_which_inputs_matter() -> None:
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    x = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([0.01, 1.0, 10.0])
    fitted = fit_output(regression(weight, x), truncated_svd(weight, 1)).product()
    assert fitted[2, 2] > 0.99
    assert fitted[:2].abs().max() < 0.01
    same = LowRankFactors(*(factor.clone() for factor in truncated_svd(weight, 3)))
    assert fit_output(regression(weight, x), same).product().allclose(weight)


@pytest.mark.parametrize("kind", BOTH)
def test_narrowed_block_is_the_block_of_the_kept_channels(kind: str) -> None:
    layer = layer_of({"kernel_size": 3, "padding": 1} if kind == "conv" else {}, 6, 8)
    block = LowRank.from_layer(layer, 4)
    x = torch.randn((1, 6, 5, 5) if kind == "conv" else (3, 6), dtype=torch.float64)
    inputs, outputs = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 7])
    masked = torch.zeros_like(x)
    masked[:, inputs] = x[:, inputs]
    expected = block(masked)[:, outputs]
    narrow(block, inputs, outputs)
    torch.testing.assert_close(block(x[:, inputs]), expected)
    assert (block.in_channels, block.out_channels) == (3, 3)
    assert block.to_dense().weight.shape[:2] == (3, 3)


class Small(nn.Module):
    """Convolutions and a head of linear layers, which reads flattened 2x2 maps."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.mix, self.bn2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.fc, self.bn3 = nn.Linear(12 * 4, 10), nn.BatchNorm1d(10)
        self.out = nn.Linear(10, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        x = nn.functional.adaptive_avg_pool2d(self.bn2(self.mix(x)).relu(), 2).flatten(1)
        logits: Tensor = self.out(self.bn3(self.fc(x)).relu())
        return logits


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """A network of :class:`Small`, whose architecture is registered."""
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    layers = (nd.Layer("conv", (), "a"), nd.Layer.norm("bn", ("a",)), nd.Layer("mix", ("a",), "b"))
    layers += (nd.Layer.norm("bn2", ("b",)), nd.Layer("fc", ("b",), "c", spatial=4), nd.Layer.norm("bn3", ("c",)))
    plan = nd.ChannelPlan({"a": 8, "b": 12, "c": 10}, (*layers, nd.Layer("out", ("c",))))
    rates = tuple(nd.RateEntry(group, (group,)) for group in "abc")
    nd.register_architecture(nd.Architecture("small", Small, plan, rates, 5, 16, "out", "cifar10"))
    torch.manual_seed(0)
    return with_statistics(Small(5))


IMAGES = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_each_method_has_its_layers(small: nn.Module) -> None:
    network = dense_network("small")
    pointwise, skipped = decomposable_layers(network, "svd")
    assert pointwise == ["mix", "fc"]
    assert skipped == {"conv": "3x3", "out": "writes no channel group"}
    for method in ("cp", "tucker2"):
        chosen, skipped = decomposable_layers(network, method)
        assert chosen == ["conv"]
        assert skipped == {"mix": "1x1", "fc": "linear", "out": "linear"}
    assert LowRank.suits(nn.Conv2d(4, 4, 1, groups=2)) == "grouped (groups=2)"
    assert LowRank.suits(nn.Conv2d(4, 4, 1, groups=4)) == "depthwise"
    named, spec = nd.decompose(small, "small", {"conv": 2, "out": 3}, method="svd")
    assert spec.ranks == {"conv": 2, "out": 3}
    assert describe(named, "small") == spec
    _, both = nd.decompose(named, spec, 4, method="svd")  # which is not for those that were named
    assert both.ranks == {"conv": 2, "out": 3, "mix": 4, "fc": 4}


def test_methods_by_layer(small: nn.Module, refused: Refused) -> None:
    ranks: dict[str, Any] = {"conv": (2, 3), "mix": 5, "fc": 4}
    methods = {"conv": "tucker2", "mix": "svd", "fc": "svd"}
    _, spec = nd.compress(small, arch="small", rank=ranks, decomposition=methods, rates=[0.5] * 3)
    assert {name: layer.method for name, layer in spec.decompositions.items()} == methods
    assert spec.ranks == ranks
    assert set(spec.provenance["prune"]["used"].values()) == {"norm"}
    solvers = {name: layer["solver"] for name, layer in spec.provenance["decompose"]["layers"].items()}
    assert solvers == {"conv": "als", "mix": "svd", "fc": "svd"}
    apart, after = nd.decompose(small, "small", 3, method="svd")
    apart, after = nd.decompose(apart, after, 1)
    assert after.decompositions == {"mix": ("svd", 3), "fc": ("svd", 3), "conv": ("cp", 1)}
    again, same = nd.decompose(apart, after, 3, method="svd")
    assert same == after
    torch.testing.assert_close(again.state_dict(), apart.state_dict(), rtol=0, atol=0)

    def compressed(rank: Any, decomposition: Any, **options: Any) -> Any:
        return lambda: nd.compress(small, arch="small", rank=rank, decomposition=decomposition, **options)

    refused(compressed(ranks, {"conv": "cp", "mix": "svd"}), 2, "decomposition lacks layer 'fc', which rank has")
    refused(compressed({"fc": 4}, methods), 2, "rank lacks layer 'conv', which decomposition has")
    refused(compressed(2, methods), 2, "decomposition is by layer and rank is 2; expected the ranks of the same layers")
    refused(compressed({"fc": 4}, {"fc": "pca"}), 2, "unknown decomposition 'pca'; expected one of: cp, svd, tucker2")
    refused(compressed({"fc": 4}, {"fc": "svd"}, solver="als"), 2, "unknown SVD solver 'als'; expected one of: svd")
    refused(compressed({"fc": 4}, "cp"), 2, "layer 'fc': a Linear layer has no CP block", "or method svd")
    refused(compressed({"fc": 4}, "tucker2"), 2, "layer 'fc': a Linear layer has no Tucker block", "or method svd")
    refused(compressed({"fc": (2, 3)}, "svd"), 2, "layer 'fc': rank is (2, 3); expected one number of at least 1")
    refused(compressed({"bn": 4}, "svd"), 2, "'bn' is a BatchNorm2d", "a convolution or linear layer")
    budget = {"budget": nd.Budget(macs=1e6), "calibration": IMAGES}
    refused(compressed(None, methods, **budget), 2, "expected names as decomposition, not names by layer")
    refused(compressed(None, methods, rates=[0.5] * 3), 2, "decomposition is by layer and rank is None")


def test_network_is_pruned_calibrated_saved_and_deployed(small: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rates": [0.25, 0.5, 0.3], "criterion": "pabs", "calibration": IMAGES}
    net, spec = nd.compress(small, arch="small", rank={"mix": 3, "fc": 4, "conv": 5}, decomposition="svd", **options)
    fits = spec.provenance["calibrate"]["layers"]
    assert all(fit["fitted"] <= fit["plain"] + 1e-9 for fit in fits.values())
    assert net.fc.reduce.weight.shape == (4, 6 * 4)
    built = nd.build(spec)
    assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, read = nd.load(tmp_path / "net.safetensors")
    net.eval()
    assert read == spec
    assert torch.equal(loaded(IMAGES), net(IMAGES))
    fast = deploy(net, IMAGES, repeats=1)
    assert fast.deployment.folded == {"bn": "conv", "bn2": "mix", "bn3": "fc"}
    assert {"mix", "fc", "conv", "out"} == {block.name for block in fast.deployment.blocks}
    assert all(f"\n{name} " in str(fast.deployment) for name in ("mix", "fc", "conv"))
    assert not any(isinstance(module, LowRank) for module in fast.modules())
    torch.testing.assert_close(fast(IMAGES), net(IMAGES), rtol=1e-3, atol=1e-3)
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    restored, _ = nd.load(tmp_path / "fast.safetensors")
    torch.testing.assert_close(restored(IMAGES), fast(IMAGES), rtol=1e-5, atol=1e-5)


def test_costs_in_closed_form_are_those_counted(small: nn.Module) -> None:
    linear, convs = {"features.3": 20, "classifier.0": 8}, {"conv": 2, "mix": 3, "out": 5}
    for arch, ranks, rates in (("vgg16_bn_cifar", linear, "[0.2]*13"), ("small", convs, "[0.5]+[0.]*2")):
        spec = spec_from_configuration(arch, ranks, rates, decomposition="svd")
        counted = count_complexity(spec)
        costs = CostModel(ARCHITECTURES[spec.arch]).at(spec.decompositions, spec.widths)
        assert (costs.macs, costs.macs_published, costs.params) == (
            counted.macs,
            counted.macs_published,
            counted.params,
        )


def test_ranks_to_choose_from() -> None:
    fc6 = nn.Linear(12544, 1024, device="meta")
    assert LowRank.choices(fc6) == [32, 64, 128, 256, 384, 512, 640, 768, 896]
    assert LowRank.choices(nn.Conv2d(64, 4, 1)) == [1, 2, 3, 4]
    for layer, rank in itertools.product((fc6, nn.Conv2d(3, 7, (3, 5), device="meta")), (1, 5, 10**6)):
        block = LowRank.like(layer, rank)
        kernel = (1, 1) if isinstance(layer, nn.Linear) else layer.kernel_size
        (out, inputs), sizes = layer.weight.shape[:2], ((1, 1), (1, 1))
        assert LowRank.cost(inputs, out, kernel, *sizes, block.rank)[1] + out == sum(
            p.numel() for p in block.parameters()
        )


def test_refused(refused: Refused) -> None:
    with pytest.raises(UsageError, match="groups=4"):
        LowRank.from_layer(nn.Conv2d(4, 4, 3, groups=4), 1)
    for rank in (0, True, (2, 2)):
        with pytest.raises(UsageError, match=r"rank is .*; expected one number of at least 1 for an SVD"):
            LowRank.from_layer(nn.Linear(4, 4), rank)
    linear = nn.Linear(2, 3)
    with torch.no_grad():
        linear.weight[1] = float("nan")
    with pytest.raises(DataError, match=r"filters \[1\] are not finite"):
        LowRank.from_layer(linear, 1)
    with pytest.raises(UsageError, match="unknown implementation 'merged'; expected one of: factored, dense"):
        set_implementation(LowRank(linear, 1), "merged")
    spec = nd.Spec("resnet50", 10, {"fc": nd.DecomposedLayer("svd", 11)})
    refused(lambda: nd.build(spec), 2, "layer 'fc': rank 11 is above its channels; expected at most 10")
    spec = nd.Spec("resnet50", 10, {"fc": nd.DecomposedLayer("cp", 1)})
    refused(lambda: nd.build(spec), 2, "layer 'fc': a Linear layer has no CP block")
    assert list(DECOMPOSITIONS) == ["cp", "svd", "tucker2"]
