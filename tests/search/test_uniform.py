"""Budget search."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tool
from torch import nn

from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.search import latency
from norton_det.search.uniform import search
from norton_det.spec import DecomposedLayer
from norton_det.structure.settings import dense_network, spec_from_configuration


def test_candidates_meet_both_targets_and_are_sorted() -> None:
    found = search("resnet50", target_macs=2.32e9, target_params=14.51e6)
    assert len(found) == 10
    assert [c.deviation for c in found] == sorted(c.deviation for c in found)
    for candidate in found:
        assert 0.99 * 2.32e9 <= candidate.macs <= 2.32e9
        assert 0.99 * 14.51e6 <= candidate.params <= 14.51e6
    best = found[0]
    counted = count_complexity(spec_from_configuration("resnet50", best.rank, best.rates))
    assert (best.macs, best.macs_published, best.params) == (counted.macs, counted.macs_published, counted.params)


@pytest.mark.parametrize("targets", [{"target_macs": 30e6}, {"target_params": 0.2e6}])
def test_one_target(targets: dict[str, float]) -> None:
    found = search("resnet56_cifar", rank=2, **targets, convention="published", limit=3)
    assert 1 <= len(found) <= 3
    for candidate in found:
        assert candidate.rank == 2
        cost = {"target_macs": candidate.macs_published, "target_params": candidate.params}
        assert all(0.99 * target <= cost[name] <= target for name, target in targets.items())


def test_what_cannot_be_met_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"no configuration within 1% below macs 2,000,000,000 and params 1,000; nearest .*rank"
    ):
        search("resnet56_cifar", target_macs=2e9, target_params=1000, rank=1)
    with pytest.raises(UsageError, match="no target"):
        search("resnet56_cifar")
    with pytest.raises(UsageError, match="unknown convention 'x'; expected one of: plain, published"):
        search("resnet56_cifar", target_macs=1e6, convention="x")
    with pytest.raises(UsageError, match="rank is 0"):
        search("resnet56_cifar", target_macs=1e6, rank=0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int | None]:
    """Ranks of the layers that are timed: each takes a millisecond for a million multiply-accumulates."""
    ranks: list[int | None] = []

    def time_layer(module: nn.Module, shape: tuple[int, ...], device: str) -> dict[str, float]:
        ranks.append(getattr(module, "rank", None))
        parts = [getattr(module, name) for name in ("pointwise", "reduce", "core", "expand") if hasattr(module, name)]
        weights = sum(part.weight.numel() for part in parts or [module])  # depthwise convolutions cost next to nothing
        spatial = np.prod(shape[2:]) / np.prod(getattr(module, "stride", 1))
        milliseconds = 1e-6 * weights * float(spatial)
        return {"contiguous": milliseconds, "channels_last": 2 * milliseconds}

    monkeypatch.setattr(latency, "_time_layer", time_layer)
    whole = {"contiguous": 200.0, "channels_last": 400.0}
    monkeypatch.setattr(latency.LatencyModel, "_time_whole", lambda *args: whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ranks


def test_latency_is_interpolated_and_the_table_is_kept(timed: list[Any], tmp_path: Path) -> None:
    dense = dense_network("resnet56_cifar", device="cpu")
    costs = CostModel(dense.architecture)
    model = latency.LatencyModel(costs, dense, ranks=(1, 2))
    assert model.dense == pytest.approx(200)
    assert set(timed) == {None, 1, 2}
    count = len(timed)
    # What is proportional to the products of widths is interpolated exactly, and the rest stays.
    widths = {group: np.array([width, width // 2 + 1, width // 8 + 1]) for group, width in costs.plan.widths.items()}
    macs = costs.at({}, widths).macs
    np.testing.assert_allclose(model.at({}, widths) - model.dense, 1e-6 * (macs - macs[0]), rtol=1e-6, atol=1e-6)
    assert model.at({"layer1.0.conv1": DecomposedLayer("cp", 2)}, {}) < model.dense
    assert len(list((tmp_path / "norton_det").iterdir())) == 1
    latency.LatencyModel(costs, dense, ranks=(1, 2))
    assert len(timed) == count


def test_search_by_latency(timed: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    dense = dense_network("resnet56_cifar", device="cpu")
    model = latency.LatencyModel(CostModel(dense.architecture), dense, ranks=(1,))
    found = search("resnet56_cifar", target_speedup=2.4, rank=1, latency=model, limit=3)
    assert 1 <= len(found) <= 3
    for candidate in found:
        assert 0.99 * model.dense / 2.4 <= candidate.latency_ms <= model.dense / 2.4
    words = ["--arch", "resnet56_cifar", "--rank", "1", "--top", "1", "--target-latency-ms", "83"]
    assert tool("search").main(words) == 0
    assert "dense: 200.00 ms" in capsys.readouterr().out
    with pytest.raises(UsageError, match="target_speedup is 0"):
        search("resnet56_cifar", target_speedup=0, latency=model)
    with pytest.raises(UsageError, match="expected a LatencyModel"):
        search("resnet56_cifar", target_latency_ms=3)


def test_a_layer_is_timed() -> None:
    conv = nn.Conv2d(8, 6, 3, padding=1, stride=2, device="meta")
    for module, shape in (
        (latency._resized(conv, (8, 6), (4, 3), DecomposedLayer("cp", 2)), (1, 4, 8, 8)),
        (latency._resized(conv, (8, 6), (4, 3), DecomposedLayer("tucker2", (2, 3))), (1, 4, 8, 8)),
        (latency._resized(nn.Conv2d(4, 6, 1, device="meta"), (4, 6), (4, 6), None), (1, 4, 8, 8)),
        (latency._resized(nn.Linear(4, 6, device="meta"), (4, 6), (4, 6), None), (2, 4)),
        (latency._resized(nn.Linear(36, 6, device="meta"), (4, 6), (3, 5), DecomposedLayer("svd", 2)), (2, 27)),
    ):
        times = latency._time_layer(module, shape, "cpu")
        assert set(times) == {"contiguous", "channels_last"}
        assert all(value > 0 for value in times.values())
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_latency_knows_every_decomposition(timed: list[Any]) -> None:
    dense = dense_network("resnet56_cifar", device="cpu")
    model = latency.LatencyModel(CostModel(dense.architecture), dense, decomposition="tucker2")
    assert {rank for rank in timed if rank is not None} > {(2, 2), (8, 8)}  # eighths of 16 and of 64 channels
    layers = {"layer3.1.conv1": DecomposedLayer("tucker2", (8, 8))}
    assert model.at(layers, {}) < model.at({"layer3.1.conv1": DecomposedLayer("tucker2", (32, 32))}, {}) < model.dense
    found = search(
        "resnet56_cifar", target_speedup=1.45, decomposition="tucker2", latency=model, tolerance=0.05, limit=2
    )
    for candidate in found:
        assert 0.95 * model.dense / 1.45 <= candidate.latency_ms <= model.dense / 1.45
        spec = spec_from_configuration("resnet56_cifar", candidate.rank, candidate.rates, decomposition="tucker2")
        assert count_complexity(spec).params == candidate.params
    for name, layer in (("linear", DecomposedLayer("tucker2", 1)), ("layer3.1.conv1", DecomposedLayer("cp", 1))):
        with pytest.raises(UsageError, match=f"no latency of layer '{name}' decomposed by '{layer.method}'"):
            model.at({name: layer}, {})


def test_arguments_of_the_allocation_are_not_ignored_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    words = ["--arch", "resnet56_cifar", "--target-params", "2e5", "--rank", "2", "--top", "1"]
    assert tool("search").main([*words, "--seed", "3", "--output", "x.yaml"]) == 0
    ignored = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert ignored == ["--seed is ignored without --allocate", "--output is ignored without --allocate"]
