"""Calibration in any dtype, with few images, and where it fails."""

import copy
from functools import partial

import pytest
import torch
from conftest import TINY, Refused
from correlated import IN, OUT, K, correlated, images, network, regression
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.calibration.layer_fit import Fit
from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.moments import Moments
from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_output_fit import fit_output
from norton_det.linalg.least_squares import RIDGES, Regression, best_ridge
from norton_det.models import ARCHITECTURES
from norton_det.structure.describe import described

ARCH = "resnet56_cifar"
RANKS = {"conv1": 1, "layer2.1.conv2": 2}


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_half_network_is_calibrated_as_well_as_a_double_one(dtype: torch.dtype) -> None:
    dense, spec = network(ARCH)
    single, x = images(8).float(), images(4)
    errors = []
    for kind in (torch.float64, dtype):
        net, after = nd.decompose(copy.deepcopy(dense).to(kind), spec, RANKS, calibration=single)
        errors.append(relative(net.double()(x), dense(x)))
        assert all(fit["fitted"] <= fit["plain"] + 1e-4 for fit in after.provenance["calibrate"]["layers"].values())
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_detector_is_calibrated(dtype: torch.dtype) -> None:
    net, spec = nd.prune(
        *make_detector("fasterrcnn_cpresnet50_fpn", **TINY), "[0.9]*60", criterion="norm", scope="detector"
    )
    name = "backbone.body.layer2.1.conv2"
    sample = [torch.rand(3, 64, 64) for _ in range(2)]
    fits = [
        nd.decompose(net.to(kind), spec, {name: 1}, calibration=sample)[1].provenance["calibrate"]["layers"][name]
        for kind in (torch.float32, dtype)
    ]
    assert fits[1]["fitted"] == pytest.approx(fits[0]["fitted"], rel=0.2)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_second_moments_are_positive_far_from_the_mean(count: int, mean: float) -> None:
    layer = nn.Linear(20, 5)
    x = mean + torch.randn(count, 20)
    moments = Moments(layer, 0)
    with torch.no_grad():
        moments.add(x, layer(x))
    problem = moments.regression(layer.weight.detach().double())
    exact = x.double().T.cov(correction=0) if count > 1 else torch.zeros(20, 20)
    second = problem.with_ridge(0).metric
    torch.testing.assert_close(second, exact.double(), rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(second).min() > -1e-12 * second.diagonal().mean().clamp(min=1e-3)
    for ridge in RIDGES:
        assert problem.with_ridge(ridge).solution().isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("arch", [ARCH, "vgg16_bn_cifar"])
def test_few_images(arch: str, count: int) -> None:
    dense, spec = network(arch)
    dense.float()
    sample = images(count).float() + 3
    net, _ = nd.prune(dense, spec, "[0.5]*60", criterion="norm", calibration=sample)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def solve_cp(rank: int, problem: Regression) -> Tensor:
    start = cp_decompose(problem.prior.view(OUT, IN, K, K), rank)
    return fit_output(problem, start, sweeps=2, second_start=False).reconstruct().flatten(1)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_chooses_no_ridge(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUT, IN * K * K, generator=generator, dtype=torch.float64)

    def problem(x: Tensor) -> Regression:
        y = x @ weight.mT
        return regression(weight, x, y + 1e-7 * y.std() * torch.randn(y.shape, generator=generator))

    x = correlated(3000)
    fit, check, held_out = problem(x[:60]), problem(x[60:120]), problem(x[120:])
    assert best_ridge(fit, check) == RIDGES[0], "the weights explain the outputs: they stay"
    # A decomposition does not explain them: the metric in which it is fitted matters, and is chosen by what it does.
    errors = {}
    for ridge in RIDGES:
        part = Regression(weight, fit.second, fit.cross, fit.power, ridge)
        errors[ridge] = held_out.error(solve_cp(2, part)).sum().item()
    chosen = errors[best_ridge(fit, check, partial(solve_cp, 2))]
    assert chosen < 1.1 * min(errors.values())
    assert chosen < 0.8 * errors[RIDGES[0]]


@pytest.mark.parametrize(
    ("broken", "layer"), [("images", "conv1"), ("dense", "layer2.3.conv1"), ("compressed", "layer2.3.conv2")]
)
def test_a_failed_calibration_names_the_layer_and_changes_nothing(broken: str, layer: str, refused: Refused) -> None:
    dense, spec = network(ARCH)
    net, _ = nd.decompose(dense, spec, {"conv1": 1})
    sample = images()
    with torch.no_grad():
        if broken == "images":
            sample[0, 0, 0, 0] = float("nan")
        else:
            part = {"dense": dense, "compressed": net}[broken].get_submodule("layer2.3")
            (part.conv1.weight if broken == "dense" else part.bn1.running_var)[0] = float("nan")
    before = copy.deepcopy(net.state_dict())
    plan = described(dense, ARCHITECTURES[ARCH], spec).plan
    refused(lambda: calibrate(net, dense, plan, {}, sample), 3, f"layer '{layer}' cannot be calibrated: ", "not finite")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_weights_beyond_the_dtype_are_refused(refused: Refused) -> None:
    dense, spec = network("vgg16_bn_cifar")
    with torch.no_grad():
        dense.features[0].weight.mul_(1e-3)
        dense.features[3].weight.mul_(3e4)
    half = dense.half()
    plan = described(half, ARCHITECTURES["vgg16_bn_cifar"], spec).plan
    net = copy.deepcopy(half)
    with torch.no_grad():
        net.features[0].weight.mul_(0.01)
    net.features[1].running_var.mul_(1e4)
    before = copy.deepcopy(net.state_dict())
    refused(lambda: calibrate(net, half, plan, {}, images()), 3, "layer 'features.", "cannot be calibrated: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("arch", [ARCH, "resnet50"])
def test_the_first_block_of_a_stage_makes_up_for_its_shortcut(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, spec = network(arch)
    readers = ["layer1.1.conv1"]
    x = images(16)

    def sums(net: nn.Module) -> list[Tensor]:
        got: list[Tensor] = []
        inputs = [net.get_submodule(name) for name in readers]
        hooks = [module.register_forward_pre_hook(lambda _, args: got.append(args[0])) for module in inputs]
        net(x)
        for hook in hooks:
            hook.remove()
        return got

    layer = "conv1" if arch == ARCH else "layer1.0.conv2"
    errors = []  # with what the first block makes up, and without
    for after in (Fit.after, lambda *_: None):
        monkeypatch.setattr(Fit, "after", after)
        net, _ = nd.decompose(dense, spec, {layer: 1}, calibration=x)
        errors.append(relative(*sums(net), *sums(dense)))
    assert errors[0] < 0.98 * errors[1]
