"""Tucker-2: the block, its fits, and networks of it."""

import itertools
from pathlib import Path

import pytest
import torch
from convolutions import GEOMETRIES
from correlated import IN, OUT, K, correlated, images, network, regression
from torch import nn

import norton_det as nd
from norton_det.channels.narrow import narrow
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.decompositions import TuckerConv2d, set_implementation
from norton_det.decompositions.tucker_fit import TuckerFactors, fit_output, tucker_decompose
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.structure.describe import describe
from norton_det.structure.settings import spec_from_configuration


@pytest.mark.parametrize("rank", [2, (3, 4), 20])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_block_is_the_convolution_with_its_kernel(geometry: dict, rank: int | tuple[int, int]) -> None:
    conv = nn.Conv2d(5, 7, **geometry, dtype=torch.float64)
    block = TuckerConv2d.from_conv(conv, rank)
    x = torch.randn(2, 5, 13, 11, dtype=torch.float64)
    expected = block.to_dense()(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    for implementation in implementations_of(block):
        torch.testing.assert_close(expand(block, implementation)(x), expected, rtol=1e-10, atol=1e-10)
    set_implementation(block, "dense")
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    if rank == 20:
        assert block.rank == (5, 7)
        torch.testing.assert_close(expected, conv(x), rtol=1e-7, atol=1e-7)


def test_planted_kernels_are_recovered_and_more_rank_is_no_worse() -> None:
    shapes = ((10, 3), (4, 3, 9), (12, 4))
    planted = TuckerFactors(*(torch.randn(shape, dtype=torch.float64) for shape in shapes)).reconstruct()
    torch.testing.assert_close(tucker_decompose(planted, (3, 4)).reconstruct(), planted, rtol=1e-6, atol=1e-6)
    weight = torch.randn(12, 10, 9, dtype=torch.float64)
    errors = [(tucker_decompose(weight, (r, r + 2)).reconstruct() - weight).norm() for r in range(1, 11)]
    assert all(b <= a for a, b in itertools.pairwise(errors))
    assert not tucker_decompose(torch.zeros(4, 3, 9).double(), (2, 2)).reconstruct().any()


@pytest.mark.parametrize("rank", [(1, 1), (3, 2), (IN, OUT)])
@pytest.mark.parametrize(("samples", "dead"), [(1000, 0), (1000, 3), (1000, IN), (20, 0), (1, 0)])
def test_output_error_never_exceeds_plains(samples: int, dead: int, rank: tuple[int, int]) -> None:
    weight = torch.randn(OUT, IN * K * K, dtype=torch.float64)
    problem = regression(weight, correlated(samples, dead))
    start = tucker_decompose(weight.view(OUT, IN, -1), rank)
    fitted = fit_output(problem, start)
    assert all(factor.isfinite().all() for factor in fitted)
    before, after = (problem.error(factors.reconstruct().flatten(1)).sum() for factors in (start, fitted))
    assert after <= before
    if rank != (IN, OUT) and dead < IN and samples > 1:
        assert after < 0.95 * before, "inputs are correlated: the metric matters"


def test_planted_kernel_is_recovered_from_another_start() -> None:
    shapes = ((IN, 2), (3, 2, K * K), (OUT, 3))
    planted = TuckerFactors(*(torch.randn(shape, dtype=torch.float64) for shape in shapes)).reconstruct().flatten(1)
    problem = regression(planted, correlated(1000))
    other = tucker_decompose(torch.randn(OUT, IN, K * K, dtype=torch.float64), (2, 3))
    fitted = fit_output(problem, other)
    assert problem.error(fitted.reconstruct().flatten(1)).sum() < 1e-3 * problem.power.sum()


def test_network_is_pruned_saved_and_deployed(tmp_path: Path) -> None:
    dense, spec = network("resnet56_cifar")
    net, after = nd.compress(dense.float(), arch=spec, rank=2, rates="[0.3]*30", decomposition="tucker2")
    assert {layer.method for layer in after.decompositions.values()} == {"tucker2"}
    assert after.ranks["conv1"] == (2, 2)
    assert set(after.provenance["prune"]["used"].values()) == {"norm"}  # filters have no factors of their own
    nd.save(net, after, tmp_path / "net.safetensors")
    again, read = nd.load(tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert read == after
    assert torch.equal(again(x), net(x))
    fast = deploy(net, x, repeats=1)
    assert not any(isinstance(module, TuckerConv2d) for module in fast.modules())
    assert len(fast.deployment.folded) == 55
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-3, atol=1e-3)


def test_narrowed_block_is_the_block_of_the_kept_channels() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    block = TuckerConv2d.from_conv(conv, (3, 4))
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    inputs, outputs = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 7])
    masked = torch.zeros_like(x)
    masked[:, inputs] = x[:, inputs]
    expected = block(masked)[:, outputs]
    narrow(block, inputs, outputs)
    torch.testing.assert_close(block(x[:, inputs]), expected)


def test_costs_in_closed_form_are_those_counted() -> None:
    spec = spec_from_configuration("resnet56_cifar", "[2x3]*20+[0]+[8]*34", "[0.]+[0.2]*29", decomposition="tucker2")
    counted = count_complexity(spec)
    costs = CostModel(ARCHITECTURES["resnet56_cifar"]).at(spec.decompositions, spec.widths)
    assert (costs.macs, costs.macs_published, costs.params) == (counted.macs, counted.macs_published, counted.params)


def test_calibration_and_description() -> None:
    dense, spec = network("resnet56_cifar")
    names = {"layer1.1.conv1": (1, 2), "layer3.1.conv2": 3}
    _, after = nd.decompose(dense, spec, names, method="tucker2", calibration=images())
    fits = after.provenance["calibrate"]["layers"]
    assert all(fit["fitted"] <= fit["plain"] + 1e-9 for fit in fits.values())
    assert fits["layer3.1.conv2"]["fitted"] < fits["layer3.1.conv2"]["plain"]
    whole, _ = nd.decompose(
        nd.build(nd.Spec("vgg16_bn_cifar", 10)), "vgg16_bn_cifar", {"features.0": 2}, method="tucker2"
    )
    assert describe(whole, "vgg16_bn_cifar").ranks == {"features.0": (2, 2)}


def test_refused() -> None:
    with pytest.raises(UsageError, match="groups=4"):
        TuckerConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4), 1)
    with pytest.raises(UsageError, match="rank is 0"):
        TuckerConv2d.from_conv(nn.Conv2d(4, 4, 3), 0)
    conv = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        conv.weight[1] = float("nan")
    with pytest.raises(DataError, match=r"filters \[1\] are not finite"):
        TuckerConv2d.from_conv(conv, 1)
    with pytest.raises(UsageError, match="unknown implementation 'merged'; expected one of: factored, dense"):
        set_implementation(TuckerConv2d(conv, 1), "merged")
