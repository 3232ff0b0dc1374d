"""Allocation: what a choice changes, and the choices that a budget leaves."""

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Refused, tool
from torch import Tensor, nn

import norton_det as nd
from norton_det.config import read_config
from norton_det.cost.budget import Budget
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, resnet_cifar
from norton_det.models.architecture import Architecture
from norton_det.search.allocation import Allocation, best_within
from norton_det.search.limits import Limits
from norton_det.search.outputs import Outputs
from norton_det.search.probes import RankChoice, WeightProbe
from norton_det.search.sensitivity import Sensitivity, changes_of, measure
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.describe import described
from norton_det.structure.network import Network
from norton_det.structure.settings import decomposable_layers, dense_network, spec_from_configuration


@pytest.fixture
def resnet8(monkeypatch: pytest.MonkeyPatch) -> str:
    """A network of seven narrow convolutions, that is measured in a test's time."""
    monkeypatch.setattr(resnet_cifar, "_WIDTHS", (8, 16, 32))
    builder, plan = partial(resnet_cifar.CifarResNet, 1), resnet_cifar._plan(1)
    network = Architecture("resnet8", builder, plan, resnet_cifar._rate_order(1), 10, 32, "linear", "cifar10")
    monkeypatch.setitem(ARCHITECTURES._items, "resnet8", network)
    return "resnet8"


def trained(classes: int = 10) -> nn.Module:
    """Return a network whose batch norms have statistics of their own."""
    net = ARCHITECTURES["resnet8"].build(classes)
    net.train()(torch.randn(16, 3, 32, 32))
    return net.eval()


def within(budget: Budget, arch: str, sensitivity: Sensitivity) -> Allocation:
    return best_within(Limits(budget, ARCHITECTURES[arch]), sensitivity)


def falling(layers: list[str], seed: int = 0) -> dict[str, dict[DecomposedLayer, float]]:
    """Return changes that fall with the rank, at another pace for each layer."""
    pace = 0.3 + torch.rand(len(layers), generator=torch.Generator().manual_seed(seed))
    return {
        layer: {DecomposedLayer("cp", r): float((-own * r).exp()) for r in range(1, 9)}
        for layer, own in zip(layers, pace, strict=True)
    }


def resnet56_layers() -> list[str]:
    return decomposable_layers(dense_network("resnet56_cifar"))[0]


def test_predicted_change_is_the_real_one() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 3))
    net.requires_grad_(False)
    images = torch.randn(3000, 3, 7, 7) + 0.5
    x = images
    for name, layer in (("0", net[0]), ("2", net[2]), ("4", net[4])):
        delta = 1e-2 * torch.randn_like(layer.weight)
        patches = _unfolded(layer, x)
        probe = WeightProbe(patches.mean((0, 2)))
        probe.add(RankChoice(name, None), delta)
        network = Network(net, Spec("resnet56_cifar", 10), ARCHITECTURES["resnet56_cifar"])
        predicted = changes_of(net, {name: [probe]}, Outputs(network, images, 0), seed=0)[name].item()
        before = net(images)
        layer.weight += delta
        layer.bias -= delta.flatten(1) @ probe.mean  # the mean of what changes costs nothing
        real = ((net(images) - before).square().mean(0) / before.var()).mean().item()
        layer.bias += delta.flatten(1) @ probe.mean
        layer.weight -= delta
        assert 0.8 < predicted / real < 1.25
        x = net[: int(name) + 2](images)


def _unfolded(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x.unsqueeze(2)
    return nn.functional.unfold(x, layer.kernel_size, stride=layer.stride)


def test_measured_changes(resnet8: str) -> None:
    net = trained()
    found = measure(described(net, ARCHITECTURES[resnet8]), torch.randn(12, 3, 32, 32))
    layers = found.decompositions
    assert set(layers) == {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    for ranks in layers.values():
        assert all(ranks[r] > 0 for r in ranks)
        assert ranks[DecomposedLayer("cp", 1)] > ranks[max(ranks)]
    assert max(layers["layer1.0.conv1"]).rank == 5  # six terms have more weights than the layer
    # The stem, two stages and three inner groups; each loses more where less is left.
    assert len(found.rates) == 6
    assert all(levels[2] < levels[14] for levels in found.rates.values())


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(other, marks=pytest.mark.slow) for other in (torch.float16, torch.float64))],
)
def test_changes_do_not_depend_on_the_dtype(resnet8: str, dtype: torch.dtype) -> None:
    net, images = trained(), torch.randn(4, 3, 32, 32)
    single, other = (
        measure(described(net.to(kind), ARCHITECTURES[resnet8]), images, criterion="norm").decompositions[
            "layer1.0.conv1"
        ]
        for kind in (torch.float32, dtype)
    )
    assert single.keys() == other.keys()
    rank = DecomposedLayer("cp", 1)
    assert other[rank] == pytest.approx(single[rank], rel=0.1)


def test_twins_are_spared(resnet8: str) -> None:
    net = trained()
    inner = net.layer2[0]
    with torch.no_grad():
        for tensor in (inner.conv1.weight, inner.bn1.weight, inner.bn1.bias, inner.bn1.running_mean):
            tensor[1:] = tensor[:1]
        inner.bn1.running_var[1:] = inner.bn1.running_var[:1]
    rates = measure(described(net, ARCHITECTURES[resnet8]), torch.randn(12, 3, 32, 32), criterion="norm").rates
    # Of the inner groups, after the stem and two stages, the second has twins only: one of them does for all.
    assert rates[4][15] < 1e-3 * min(rates[3][14], rates[5][15])


@pytest.mark.parametrize(
    "budget",
    [
        Budget(macs=60e6),
        Budget(params=0.3e6),
        Budget(macs=40e6, params=0.25e6, convention="published"),
        Budget(macs=14.5e6, params=0.085e6),
    ],
    ids=str,
)
def test_budget_is_met_and_costs_are_exact(budget: Budget) -> None:
    layers = resnet56_layers()
    rates = {i: {level: 1e-3 * level**2 for level in range(1, 16)} for i in range(1, 30)}
    found = within(budget, "resnet56_cifar", Sensitivity(falling(layers), rates))
    counted = count_complexity(spec_from_configuration("resnet56_cifar", found.rank, found.rates))
    assert (found.macs, found.macs_published, found.params) == (counted.macs, counted.macs_published, counted.params)
    for name, target in budget.targets().items():
        assert getattr(found, name) <= target
    assert any(getattr(found, name) >= 0.98 * target for name, target in budget.targets().items())


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_one_rank_for_all(rank: int, seed: int) -> None:
    changes = falling(resnet56_layers(), seed)
    uniform = count_complexity(spec_from_configuration("resnet56_cifar", rank))
    found = within(Budget(uniform.macs, uniform.params), "resnet56_cifar", Sensitivity(changes, {}))
    assert found.change <= sum(ranks[DecomposedLayer("cp", rank)] for ranks in changes.values())


def test_near_the_best_of_all() -> None:
    layers = ["layer2.1.conv1", "layer2.3.conv2", "layer3.2.conv1"]
    changes = falling(layers)
    model = CostModel(ARCHITECTURES["resnet56_cifar"])

    def cost(ranks: dict[str, int]) -> int:
        return model.at({name: DecomposedLayer("cp", rank) for name, rank in ranks.items()}, {}).macs

    dense = cost({})
    for target in (dense - 1e6, dense - 3e6, dense - 5e6):
        best = min(
            sum(changes[name][DecomposedLayer("cp", r)] for name, r in ranks.items())
            for choice in itertools.product(range(9), repeat=3)
            if cost(ranks := {name: r for name, r in zip(layers, choice, strict=True) if r}) <= target
        )
        found = within(Budget(macs=target), "resnet56_cifar", Sensitivity(changes, {}))
        assert found.change <= 1.2 * best


def test_what_is_refused(resnet8: str) -> None:
    net, images = trained(), torch.randn(2, 3, 32, 32)
    nothing = Sensitivity({}, {})
    with pytest.raises(UsageError, match=r"no allocation within macs 1,000; the nearest .* macs 3,"):
        within(Budget(macs=1000), resnet8, nothing)
    with pytest.raises(UsageError, match="no target"):
        within(Budget(), resnet8, nothing)
    for options in ({"rank": 1, "calibration": images}, {"rates": "[0.]*6", "calibration": images}, {}):
        with pytest.raises(UsageError, match="a budget takes the place of rank and rates, and needs calibration"):
            nd.compress(net, arch=resnet8, budget=Budget(macs=1e6), **options)
    with pytest.raises(UsageError, match="no image"):
        measure(described(net, ARCHITECTURES[resnet8]), images[:0])
    small, _ = nd.decompose(net, resnet8, 1)
    with pytest.raises(UsageError, match="compressed already"):
        measure(described(small, ARCHITECTURES[resnet8]), images)


def test_compress_within_a_budget(resnet8: str) -> None:
    net, images = trained(), torch.randn(8, 3, 32, 32)
    dense = count_complexity(net, 32)
    budget = Budget(0.4 * dense.macs, 0.3 * dense.params)
    small, spec = nd.compress(net, arch=resnet8, budget=budget, calibration=images)
    counted = count_complexity(spec)
    assert counted.macs <= budget.macs
    assert counted.params <= budget.params
    told = spec.provenance["allocate"]
    assert (told["macs"], told["params"]) == (counted.macs, counted.params)
    assert small(images).isfinite().all()
    again = nd.compress(net, arch=resnet8, rank=told["rank"], rates=told["rates"], calibration=images)[1]
    assert again == spec


def test_tool(
    resnet8: str, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    torch.save(trained().state_dict(), tmp_path / "net.pt")
    out = tmp_path / "small.yaml"
    words = ["--arch", resnet8, "--allocate", "--target-macs", "1.5e6", "--target-params", "12e3", "--output", str(out)]
    known = ["--weights", str(tmp_path / "net.pt"), "--calibrate", str(classes), "--calibration-images", "4"]
    assert tool("search").main([*words, *known, "--criterion", "norm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = read_config(out)
    assert (config.rank, config.rates, config.criterion) == (found["rank"], found["rates"], "norm")
    counted = count_complexity(config.spec())
    assert counted.macs <= 1.5e6
    assert counted.params <= 12e3
    refused(lambda: tool("search").main(words), 2, "--allocate without --weights")
