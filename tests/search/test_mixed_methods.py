"""Allocation of several methods, in a network with a layer that runs twice and one that reads flattened maps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refused, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_network import Shared, shared_architecture
from torch import Tensor, nn

import norton_det as nd
from norton_det.calibration.linear_map import matrix_of, unfolded_outputs
from norton_det.config import Config, read_config, write_config
from norton_det.cost.budget import Budget
from norton_det.cost.complexity import count_complexity
from norton_det.errors import UsageError
from norton_det.search import latency
from norton_det.search.allocation import best_within
from norton_det.search.candidates import probes_of
from norton_det.search.limits import Limits
from norton_det.search.options import options_of
from norton_det.search.outputs import Outputs
from norton_det.search.probes import ChannelProbe, OutputProbe, RankChoice, WeightProbe
from norton_det.search.sensitivity import Sensitivity, changes_of, measure
from norton_det.spec import DecomposedLayer
from norton_det.structure.describe import described
from norton_det.structure.network import Network
from norton_det.structure.settings import spec_from_configuration

METHODS = ("cp", "tucker2", "svd")


@pytest.fixture
def architecture() -> Iterator[nd.Architecture]:
    with shared_architecture() as shared:
        yield shared


@pytest.fixture
def network(architecture: nd.Architecture) -> Network:
    return described(Shared(5).eval().requires_grad_(False), architecture)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 3))
def test_mixtures_are_changes_of_the_weights(seed: int, outputs: int, positions: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(4 * positions, outputs).double()
    x, gradient = torch.randn(5, 4 * positions).double(), torch.randn(5, outputs, 1).double()
    y, weight = layer(x), matrix_of(layer)
    mean_x, mean_y = x.mean(0), y.mean(0)
    by_weights = WeightProbe(mean_x).features(layer, x, gradient)
    basis = torch.linalg.qr(torch.randn(outputs, outputs).double()).Q
    factors, mixture = torch.randn(outputs).double(), torch.randn(4, 4).double()
    of_outputs, of_channels = OutputProbe(mean_y, basis), ChannelProbe(mean_x.view(4, positions))
    expected = (by_weights * (basis * factors @ basis.mT @ weight)).sum()
    found = (of_outputs.features(layer, of_outputs.noted(layer, x, y), gradient) * factors).sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the means are kept in single precision
    change = torch.einsum("ocp,cd->odp", weight.view(outputs, 4, positions), mixture).flatten(1)
    found = (of_channels.features(layer, of_channels.noted(layer, x, y), gradient) * mixture).sum()
    torch.testing.assert_close(found, (by_weights * change).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lateral", "head", "fc6"])
def test_predicted_change_of_a_layer_that_runs_twice(network: Network, name: str) -> None:
    net: Any = network.module
    images = torch.randn(1500, 3, 16, 16)
    layer = net.get_submodule(name)
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, y: seen.append(unfolded_outputs(module, y)))
    before = net(images)
    handle.remove()
    weight, bias = layer.weight.clone(), layer.bias.clone()
    delta = 3e-3 * torch.randn_like(weight)
    probe = WeightProbe(torch.zeros(weight[0].numel()))
    probe.add(RankChoice(name, None), delta)
    predicted = changes_of(net, {name: [probe]}, Outputs(network, images, 0), seed=0)[name].item()
    layer.weight += delta
    real = ((net(images) - before).square().mean() / before.var()).item()
    layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    assert len(seen) == (2 if name == "head" else 1)
    assert 0.8 < predicted / real < 1.25


def test_every_method_is_measured_where_it_is_meant_for(network: Network) -> None:
    found = measure(network, torch.randn(16, 3, 16, 16), decomposition=METHODS)
    methods = {name: {option.method for option in tried} for name, tried in found.decompositions.items()}
    spatial = {"cp", "tucker2"}
    assert methods == {"stem": spatial, "lateral": {"svd"}, "head": spatial, "fc6": {"svd"}}
    assert set(found.rates) == {0, 1, 2, 3}
    for tried in found.decompositions.values():
        assert all(change > 0 for change in tried.values())
        for method in {option.method for option in tried}:
            changes = [change for option, change in tried.items() if option.method == method]
            assert changes[0] > changes[-1]


def test_a_projection_on_all_directions_changes_nothing(network: Network) -> None:
    options = {"fc6": [DecomposedLayer("svd", 24)], "lateral": [DecomposedLayer("svd", 12)]}
    outputs = Outputs(network, torch.randn(40, 3, 16, 16), 0)
    probes = probes_of(network, outputs, options, {}, 0)
    changes = changes_of(network.module, probes, outputs, 0)
    assert changes["fc6"].item() == 0
    assert changes["lateral"].item() < 1e-12  # its outputs span as many directions as it has inputs


def test_wide_layers_of_the_same_rank_are_measured_alike(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(64, 3, 16, 16)
    exact = measure(network, images, decomposition=METHODS)
    monkeypatch.setattr("norton_det.search.candidates._EXACT", 0)
    quick = measure(network, images, decomposition=METHODS)
    for name, tried in exact.decompositions.items():
        ratios = [quick.decompositions[name][option] / change for option, change in tried.items()]
        assert 0.5 < np.median(ratios) < 2
    for rate in (0, 3):  # what reads these groups has one position: both metrics are the same
        levels = exact.rates[rate]
        assert 0.7 < np.median([quick.rates[rate][level] / change for level, change in levels.items()]) < 1.4


def test_compress_chooses_a_method_for_each_layer(network: Network) -> None:
    images, dense = torch.randn(32, 3, 16, 16), count_complexity(network.spec)
    budget = Budget(0.4 * dense.macs, 0.5 * dense.params)
    small, spec = nd.compress(
        network.module, arch="shared", budget=budget, calibration=images, decomposition=METHODS, criterion="norm"
    )
    counted, told = count_complexity(spec), spec.provenance["allocate"]
    assert (told["macs"], told["params"]) == (counted.macs, counted.params)
    assert counted.macs <= budget.macs
    assert counted.params <= budget.params
    assert {layer.method for layer in spec.decompositions.values()} <= set(METHODS)
    assert small(images).isfinite().all()
    again = spec_from_configuration("shared", told["rank"], told["rates"], decomposition=told["decomposition"])
    assert again.decompositions == spec.decompositions
    assert again.widths == spec.widths
    with pytest.raises(UsageError, match="without a budget; expected one name"):
        nd.compress(network.module, arch="shared", rank=1, decomposition=METHODS)


PARTS = ("pointwise", "reduce", "core", "expand")
"""Layers inside of decomposed ones that take time; depthwise convolutions take next to none."""


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make a layer take a millisecond for a thousand multiply-accumulates, and what is no layer ten."""

    def time_layer(module: nn.Module, shape: tuple[int, ...], device: str) -> dict[str, float]:
        parts: list[Any] = [getattr(module, name) for name in PARTS if hasattr(module, name)] or [module]
        milliseconds = 1e-3 * sum(part.weight.numel() for part in parts) * float(np.prod(shape[2:]))
        return {"contiguous": milliseconds, "channels_last": 2 * milliseconds}

    def time_whole(self: latency.LatencyModel, dense: Network) -> dict[str, float]:
        milliseconds = 1e-3 * count_complexity(dense.spec).macs
        return {"contiguous": milliseconds + 10, "channels_last": 2 * milliseconds + 10}

    monkeypatch.setattr(latency, "_time_layer", time_layer)
    monkeypatch.setattr(latency.LatencyModel, "_time_whole", time_whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_latency_of_layers_that_run_twice_or_read_flattened_maps(network: Network, timed: None) -> None:
    options = options_of(network, METHODS)
    limits = Limits(Budget(speedup=2), network.architecture, options=options)
    model = limits.latency
    assert model is not None
    assert model.dense == pytest.approx(1e-3 * count_complexity(network.spec).macs + 10)
    assert limits.targets == {"latency_ms": model.dense / 2}
    layers = {"head": DecomposedLayer("tucker2", 4), "fc6": DecomposedLayer("svd", 3)}
    widths = {"stem": 6, "head": 8, "fc6": 12}
    for name, layer in layers.items():
        saved = limits.model.at({}, {}).macs - limits.model.at({name: layer}, {}).macs
        assert model.dense - model.at({name: layer}, {}) == pytest.approx(1e-3 * saved, rel=1e-6)
    narrowed = limits.model.at(layers, widths).macs
    assert model.at(layers, widths) == pytest.approx(1e-3 * narrowed + 10, rel=1e-6)
    of_layer = limits.costs_of_layer("head", (None, layers["head"]), {})
    saved = of_layer[None]["latency_ms"] - of_layer[layers["head"]]["latency_ms"]
    assert saved == pytest.approx(model.dense - float(model.at({"head": layers["head"]}, {})))
    with pytest.raises(UsageError, match=r"no latency of layer 'fc6' decomposed by 'cp'; expected by one of: svd"):
        model.at({"fc6": DecomposedLayer("cp", 1)}, {})


def test_time_grows_above_the_highest_rank_that_is_timed(network: Network, timed: None) -> None:
    model = Limits(Budget(speedup=2), network.architecture, options=options_of(network, METHODS)).latency
    assert model is not None
    times = [float(model.at({"fc6": DecomposedLayer("svd", rank)}, {})) for rank in range(1, 25)]
    assert np.all(np.diff(times) > 0)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(speedup=2.5),
        Budget(macs=2.5e5, speedup=2),
        Budget(params=3e3, latency_ms=400),
        Budget(macs=3e5),
        Budget(macs=4e5, activation_memory=24e3),
    ],
    ids=str,
)
def test_all_limits_are_kept_at_once(network: Network, timed: None, budget: Budget) -> None:
    rates = {rate: {level: 1e-3 * level**2 for level in range(1, 16)} for rate in range(4)}
    options = options_of(network, METHODS)
    changes = {name: {one: 1 / (1 + i) for i, one in enumerate(tried)} for name, tried in options.items()}
    limits = Limits(budget, network.architecture, options=options)
    found = best_within(limits, Sensitivity(changes, rates), decomposition=METHODS)
    counted = count_complexity(
        spec_from_configuration("shared", found.rank, found.rates, decomposition=found.decomposition)
    )
    for cost in ("macs", "macs_published", "params", "activation_memory"):
        assert getattr(found, cost) == getattr(counted, cost)
    for name, target in limits.targets.items():
        assert getattr(found, name) <= target
    assert (found.latency_ms is not None) == budget.timed


def test_ranks_are_multiples(network: Network) -> None:
    rounding = replace(network, architecture=network.architecture.rounding_to(8))
    ranks = {option.rank for tried in options_of(rounding, ("tucker2", "svd")).values() for option in tried}
    assert ranks
    numbers = {number for rank in ranks for number in (rank if isinstance(rank, tuple) else (rank,))}
    assert all(number % 8 == 0 or number in (3, 12) for number in numbers)  # the stem's whole widths


def test_limits_that_are_none() -> None:
    with pytest.raises(UsageError, match="speedup is 0; expected more than 0"):
        Budget(speedup=0).check()
    with pytest.raises(UsageError, match="a bounded latency without times; expected a LatencyModel"):
        Budget(latency_ms=3).targets()


def test_config_of_an_allocation(
    network: Network, timed: None, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    torch.save(network.module.state_dict(), tmp_path / "net.pt")
    out = tmp_path / "small.yaml"
    allocation = best_within(
        Limits(Budget(macs=3e5), network.architecture),
        measure(network, torch.randn(8, 3, 16, 16), decomposition=METHODS),
        decomposition=METHODS,
    )
    chosen = (allocation.rank, allocation.rates, "norm", allocation.decomposition)
    write_config(Config("shared", "cifar10", *chosen), out)
    config = read_config(out)
    assert (config.rank, config.rates, config.decomposition) == (chosen[0], chosen[1], chosen[3])
    assert count_complexity(config.spec()).macs == allocation.macs
    words = ["--arch", "shared", "--allocate", "--target-speedup", "2", "--target-params", "5e3", "--json"]
    known = ["--weights", str(tmp_path / "net.pt"), "--calibrate", str(classes), "--calibration-images", "4"]
    assert tool("search").main([*words, *known, "--decomposition", "tucker2", "--criterion", "norm"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] <= 5e3
    assert found["latency_ms"] > 0
    refused(
        lambda: tool("search").main([*words, *known, "--target-speedup", "-1"]),
        2,
        "speedup is -1; expected a number above 0",
    )


@pytest.mark.slow
def test_a_whole_detector_within_a_budget() -> None:
    options = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 20}
    dense = nd.Spec("fasterrcnn_cpresnet50_fpn", 3, options=options)
    torch.manual_seed(0)
    net, counted = nd.build(dense).eval(), nd.count_complexity(dense)
    images = [torch.rand(3, 64, 64) for _ in range(4)]
    budget = Budget(0.37 * counted.macs, 0.3 * counted.params)
    small, spec = nd.compress(net, arch=dense, budget=budget, calibration=images, scope="detector", criterion="norm")
    costs, told = nd.count_complexity(spec), spec.provenance["allocate"]
    assert (told["macs"], told["params"]) == (costs.macs, costs.params)
    assert costs.macs <= budget.macs
    assert costs.params <= budget.params
    assert len({layer.method for layer in spec.decompositions.values()}) > 1
    beside = {*spec.decompositions, *spec.widths}
    assert any(name.startswith(("rpn", "roi_heads", "backbone.fpn", "fpn")) for name in beside)
    assert len(small(images)) == 4
