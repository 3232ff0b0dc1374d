"""Calibration: fits that keep a layer's output, two networks in lockstep, and both in whole networks."""

import copy
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, tool
from correlated import IN, OUT, K, correlated, images, network, regression
from torch import Tensor, nn

import norton_det as nd
from norton_det.calibration.layer_fit import own_norms
from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.lockstep import observed, visit
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import narrow_network
from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.decompositions.cp_output_fit import fit_output
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import RIDGES, Regression, best_ridge
from norton_det.models import ARCHITECTURES
from norton_det.structure.build import build
from norton_det.structure.describe import described


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(OUT, IN * K * K, dtype=torch.float64)


def plain(weight: Tensor, rank: int) -> CPFactors:
    return cp_decompose(weight.view(OUT, IN, K, K), rank)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(("samples", "dead"), [(1000, 0), (1000, 3), (1000, IN), (20, 0), (1, 0)])
def test_output_error_never_exceeds_plains(weight: Tensor, samples: int, dead: int, rank: int) -> None:
    problem = regression(weight, correlated(samples, dead))
    start = plain(weight, rank)
    fitted = fit_output(problem, start)
    assert all(factor.isfinite().all() for factor in fitted)
    before, after = (problem.error(factors.reconstruct().flatten(1)) for factors in (start, fitted))
    assert (after <= before).all()
    if dead < IN:
        assert after.sum() < 0.9 * before.sum(), "inputs are correlated: the metric matters"
    else:
        assert all(torch.equal(a, b) for a, b in zip(start, fitted, strict=True))


def test_filters_that_are_zero_stay_zero(weight: Tensor) -> None:
    weight[2] = 0
    fitted = fit_output(regression(weight, correlated(500)), plain(weight, 2))
    assert not fitted.reconstruct()[2].any()


def test_planted_filters_are_recovered_from_another_start() -> None:
    shapes = ((OUT, n, 1) for n in (IN, K, K))
    planted = CPFactors(*(torch.randn(shape, dtype=torch.float64) for shape in shapes)).reconstruct().flatten(1)
    problem = regression(planted, correlated(1000))
    fitted = fit_output(problem, plain(torch.randn_like(planted), 1))
    assert (problem.error(fitted.reconstruct().flatten(1)) < 1e-6 * problem.power).all()


def test_same_seed_same_bits(weight: Tensor) -> None:
    problem = regression(weight, correlated(200))
    first, again = (fit_output(problem, plain(weight, 2), seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_solution_agrees_with_lstsq(weight: Tensor) -> None:
    x = torch.randn(2000, IN * K * K, dtype=torch.float64)
    y = torch.randn(2000, OUT, dtype=torch.float64)
    problem = regression(weight, x, y)
    expected = torch.linalg.lstsq(x, y).solution.mT
    torch.testing.assert_close(problem.solution(), expected, rtol=0, atol=20 * RIDGES[-1])
    residual = (y - x @ expected.mT).square().mean(0)
    torch.testing.assert_close(problem.error(expected), residual)


def test_ridge_follows_the_number_of_samples(weight: Tensor) -> None:
    truth = weight + 0.1 * torch.randn_like(weight)

    def problem(samples: int) -> Regression:
        x = torch.randn(samples, IN * K * K, dtype=torch.float64)
        return regression(weight, x, x @ truth.mT + torch.randn(samples, OUT))

    assert best_ridge(problem(100), problem(100)) > best_ridge(problem(20_000), problem(20_000))
    nothing = regression(weight, torch.zeros(1, IN * K * K, dtype=torch.float64))
    assert best_ridge(problem(100), nothing) == RIDGES[0]


@pytest.mark.parametrize("samples", [1, 20, 1000])
def test_solution_is_the_prior_where_nothing_is_wanted(weight: Tensor, samples: int) -> None:
    torch.testing.assert_close(regression(weight, correlated(samples)).solution(), weight, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "dilation": 2}, {"padding": "same", "bias": False}])
def test_moments_are_those_of_the_convolution(options: dict) -> None:
    conv = nn.Conv2d(4, OUT, 3, **options, dtype=torch.float64)
    x = torch.randn(40, 4, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        y = conv(x)
    moments = Moments(conv, 0)
    moments.add(x, y)
    prior = conv.weight.detach().flatten(1)
    problem = moments.regression(prior)
    # The convolution itself explains its output, up to the bias.
    assert (problem.error(prior).abs() < 1e-10 * problem.power).all()
    torch.testing.assert_close(problem.power, y.var((0, 2, 3), correction=0))
    mean_x, mean_y = moments.means()
    shift = mean_y - prior @ mean_x
    torch.testing.assert_close(shift, torch.zeros(OUT).double() if conv.bias is None else conv.bias.detach())


@pytest.mark.parametrize("arch", ["resnet56_cifar", "densenet40_cifar"])
def test_full_rank_is_left_as_it_is(arch: str) -> None:
    dense, spec = network(arch)
    ranks = {"resnet56_cifar": {"conv1": 9, "layer1.0.conv2": 9}, "densenet40_cifar": {"block1.3.conv": 9}}[arch]
    exact, _ = nd.decompose(dense, spec, ranks)
    calibrated, spec = nd.decompose(dense, spec, ranks, calibration=images())
    x = images(2)
    torch.testing.assert_close(calibrated(x), exact(x), rtol=1e-6, atol=1e-6)
    step = spec.provenance["calibrate"]
    assert step["images"] == 4
    assert all(abs(layer["fitted"]) < 1e-9 for layer in step["layers"].values())


def test_twin_of_a_pruned_channel_takes_its_part() -> None:
    dense, spec = network("resnet56_cifar")
    inner = "layer3.3.conv1"
    with torch.no_grad():
        for tensor in (dense.layer3[3].conv1.weight, *dense.layer3[3].bn1.state_dict().values()):
            if tensor.dim():
                tensor[5] = tensor[2]
    plan = described(dense, ARCHITECTURES[spec.arch], spec).plan
    kept = {inner: torch.tensor([c for c in range(plan.widths[inner]) if c != 5])}
    pruned = copy.deepcopy(dense)
    narrow_network(pruned, plan, kept)
    x = images(2)
    lost = (pruned(x) - dense(x)).norm()
    report = calibrate(pruned, dense, plan, kept, images(16))
    reader = report["layer3.3.conv2"]
    assert reader["fitted"] < 1e-3 * reader["plain"]
    assert (pruned(x) - dense(x)).norm() < lost / 5


@pytest.mark.parametrize("arch", ["resnet56_cifar", "densenet40_cifar", "vgg16_bn_cifar"])
def test_every_layer_comes_nearer_to_its_output(arch: str) -> None:
    dense, spec = network(arch)
    before = copy.deepcopy(dense.state_dict())
    weighted = [layer.name for layer in ARCHITECTURES[arch].plan.layers if _has_weights(dense, layer.name)]
    net, after = nd.compress(dense, arch=spec, rank={weighted[3]: 1}, rates="[0.3]*57", calibration=images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert {parameter.requires_grad for parameter in net.parameters()} == {True}
    fits = after.provenance["calibrate"]["layers"]
    assert list(fits) == weighted
    assert all(fit["fitted"] <= fit["plain"] + 1e-9 for fit in fits.values())
    assert sum(fit["fitted"] for fit in fits.values()) < sum(fit["plain"] for fit in fits.values())
    rebuilt = build(after).double().eval()
    rebuilt.load_state_dict(net.state_dict())
    x = images(1)
    assert torch.equal(rebuilt(x), net(x))


def _has_weights(net: nn.Module, name: str) -> bool:
    return isinstance(net.get_submodule(name), (nn.Conv2d, nn.Linear))


@pytest.mark.parametrize("sample", [torch.zeros(3, 3, 32, 32), torch.randn(1, 3, 32, 32)])
def test_dead_images_and_a_single_one_do_no_harm(sample: Tensor) -> None:
    dense, spec = network("resnet56_cifar")
    net, _ = nd.decompose(dense, spec, {"conv1": 1, "layer3.1.conv2": 2}, calibration=sample.double())
    outputs = net(images(2))
    assert outputs.isfinite().all()
    assert outputs.norm() < 100 * dense(images(2)).norm()


def test_detector_on_images_of_different_sizes() -> None:
    options = {"min_size": [64], "max_size": 64, "rpn_pre_nms_top_n_test": 10, "rpn_post_nms_top_n_test": 10}
    arch = "fasterrcnn_cpresnet50_fpn"
    dense, _ = nd.prune(
        ARCHITECTURES[arch].build(3, **options).eval(), arch, "[0.9]*57", criterion="random", scope="detector"
    )
    spec = nd.prune(ARCHITECTURES[arch].build(3, **options), arch, "[0.9]*57", criterion="random", scope="detector")[1]
    pictures = [torch.rand(3, 50, 64), torch.rand(3, 64, 40)]
    name = "backbone.body.layer2.1.conv2"
    net, after = nd.decompose(dense, spec, {name: 1}, calibration=pictures)
    fits = after.provenance["calibrate"]["layers"]
    assert fits[name]["fitted"] < fits[name]["plain"]
    assert "backbone.fpn.inner_blocks.0.0" in fits
    plain, _ = nd.decompose(dense, spec, {name: 1})
    with torch.no_grad():
        wanted, calibrated, other = (features(model, pictures) for model in (dense, net, plain))
    for level, maps in wanted.items():
        assert (calibrated[level] - maps).norm() < (other[level] - maps).norm(), level


def features(detector: Any, images: list[Tensor]) -> dict[str, Tensor]:
    return detector.backbone(detector.transform(images)[0].tensors)


def test_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match="calibration has no image"):
        nd.decompose(*network("resnet56_cifar"), {"conv1": 1}, calibration=images(0))


def test_own_norms() -> None:
    found = {
        arch: own_norms(network(arch)[0], ARCHITECTURES[arch].plan) for arch in ("resnet56_cifar", "densenet40_cifar")
    }
    assert len(found["resnet56_cifar"]) == 55
    assert found["resnet56_cifar"]["layer2.0.conv2"] == "layer2.0.bn2"
    assert not found["densenet40_cifar"]  # each output is normalised by several layers


def test_networks_in_lockstep() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 5))
    x = torch.randn(1, 2)
    visited: list[Any] = []
    with observed(copy.deepcopy(net), ["0", "2"], lambda n: n(x)) as layers:

        def before(name: str, inputs: Tensor) -> bool:
            visited.append((name, inputs.shape[1], next(layers)))
            return name == "2"

        visit(net, before, lambda *call: visited.append(call), ["0", "2"], lambda n: n(x))
    first, (name, output), second = visited
    assert first[:2] == (name, 2) == ("0", 2)
    assert second[:2] == ("2", 3)
    assert torch.equal(output, net[0](x))
    assert torch.equal(first[2].output, output)
    assert torch.equal(second[2].inputs, output.relu())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net)


@pytest.mark.parametrize("consumed", [0, 1, 2])
def test_observed_network_ends_with_its_reader(consumed: int) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    threads = threading.active_count()
    with observed(net, ["0", "1"], lambda n: n(torch.randn(1, 2))) as layers:
        for _ in range(consumed):
            next(layers)
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError, match="shapes"), observed(net, ["1"], lambda n: n(torch.randn(1, 7))) as layers:
        next(layers)
    assert threading.active_count() == threads


def test_tools(
    classes: Path, small_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["--arch", "resnet56_cifar", "--weights", str(small_net), "--rates", "[0.]*3+[0.4]*27"]
    out = tmp_path / "x.safetensors"
    words += ["--output", str(out), "--calibrate", str(classes), "--calibration-images", "3"]
    assert tool("compress").main(words) == 0
    assert "-> output error" in capsys.readouterr().out
    assert nd.load(out)[1].provenance["calibrate"]["images"] == 3
    for wrong, code, message in (
        (["--calibrate", str(tmp_path / "none")], 3, "none: no such folder"),
        (["--calibrate", str(tmp_path)], 3, "has no train/"),
        (["--calibration-images", "0"], 2, "--calibration-images is 0; expected at least 1"),
    ):
        refused(partial(tool("compress").main, [*words, *wrong]), code, message)


def test_accuracy_tool(classes: Path, tmp_path: Path, refused: Refused) -> None:
    net, _ = nd.prune(ARCHITECTURES["resnet56_cifar"].build(3), "resnet56_cifar", "[0.]*30")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    words = ["--arch", "resnet56_cifar", "--weights", str(tmp_path / "net.pt"), "--data-path", str(classes)]
    words += ["--calibration-images", "4", "--json", str(tmp_path / "rows.json"), "--settings"]
    config = tmp_path / "narrow.yaml"
    config.write_text("arch: resnet56_cifar\ndataset: cifar10\nrates: '[0.9]*30'\ncriterion: norm\n")
    assert tool("accuracy").main([*words, "0:[0.9]*3+[0.9]*27", str(config)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == ["dense", "0:[0.9]*3+[0.9]*27", str(config)]
    assert all(0 <= row[key] <= 100 for row in rows[1:] for key in ("plain", "calibrated"))
    config.write_text("arch: resnet110_cifar\ndataset: cifar10\n")
    other = "is one of resnet110_cifar; expected one of resnet56_cifar"
    refused(lambda: tool("accuracy").main([*words, str(config)]), 2, other)
    refused(lambda: tool("accuracy").main([*words, "two"]), 2, "configuration 'two': expected a rank")
