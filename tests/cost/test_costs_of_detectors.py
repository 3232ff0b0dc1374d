"""The cost model against the count, at random widths, ranks and methods of whole networks; activation memory."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import norton_det as nd
from norton_det.cost.activation_memory import BYTES, peak_of_layers
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.search.uniform import search
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network
from norton_det.structure.settings import rank_for, spec_from_configuration, widths_at

DETECTORS = [name for name in ARCHITECTURES if ARCHITECTURES[name].task.name == "detection"]
OPTIONS = {"anchor_sizes": [[16, 24], [32, 48], [64, 96], [128, 192], [256, 384]]}
"""Two sizes a level: twice as many predictions of the RPN as by default."""


@cache
def cost_model(arch: str, num_classes: int | None = None) -> CostModel:
    spec = None if num_classes is None else Spec(arch, num_classes, options=OPTIONS)
    return CostModel(ARCHITECTURES[arch], spec)


def random_spec(arch: str, draw: random.Random, num_classes: int, options: dict[str, Any]) -> Spec:
    """Return a spec with every second group narrowed, and every second layer decomposed by some method."""
    architecture = ARCHITECTURES[arch]
    if architecture.scopes:
        architecture = architecture.scoped("detector")
    dense = build_network(Spec(arch, num_classes, options=options), architecture, "meta")
    rates = torch.tensor([draw.choice([0.0, draw.uniform(0.0, 0.9)]) for _ in architecture.rate_order])
    widths = {group: int(width) for group, width in widths_at(dense, rates.double().numpy()).items()}
    layers = {}
    for layer in dense.plan.layers:
        module = dense.module.get_submodule(layer.name)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and draw.random() < 0.5:
            method = draw.choice(["cp", "tucker2", "svd"]) if isinstance(module, nn.Conv2d) else "svd"
            rank = draw.randint(1, 4 if method == "cp" else 200)
            layers[layer.name] = DecomposedLayer(method, rank_for(module, method, rank, 1))
    narrowed = {group: width for group, width in widths.items() if 0 < width < dense.plan.widths[group]}
    return Spec(arch, num_classes, layers, widths=narrowed, options=options)


def check_model(model: CostModel, spec: Spec) -> None:
    counted = count_complexity(spec)
    assert model.at(spec.decompositions, spec.widths) == (counted.macs, counted.macs_published, counted.params)
    memory = model.activation_memory(spec.decompositions, spec.widths)
    assert int(memory) == counted.activation_memory > 0


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["resnet56_cifar", "densenet40_cifar", "vgg16_bn_cifar"]), st.integers(0, 10**6))
def test_the_model_is_exact_for_classifiers(arch: str, seed: int) -> None:
    check_model(cost_model(arch), random_spec(arch, random.Random(seed), ARCHITECTURES[arch].num_classes, {}))


@pytest.mark.slow
@pytest.mark.parametrize("arch", DETECTORS)
@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_exact_for_whole_detectors(arch: str, seed: int) -> None:
    check_model(cost_model(arch, 4), random_spec(arch, random.Random(seed), 4, OPTIONS))


def test_the_memory_of_a_layer_by_hand() -> None:
    blocks = (nd.CPConv2d(8, 6, 3, rank=2, stride=2, padding=1), nd.TuckerConv2d(nn.Conv2d(6, 9, 3), (4, 5)))
    linear = nd.LowRank(nn.Linear(9, 10), 2)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    with peak_of_layers(net) as memory:
        net(torch.rand(1, 3, 16, 16))
    assert memory == {
        "0": BYTES * (3 + 8) * 256,
        # 12 terms: after the 1x1 convolution on 16x16, the vertical one on 8x16, the horizontal one on 8x8.
        "2": BYTES * (8 * 256 + 12 * 256 + 12 * 128),
        "3": BYTES * (6 * 64 + max(4 * 64 + 5 * 36, 5 * 36 + 9 * 36)),
        "6": BYTES * (9 + 2 + 10),
    }
    assert nd.count_complexity(net, 16).activation_memory == max(memory.values())
    with peak_of_layers(net) as memory:
        net(torch.rand(2, 3, 16, 16))
        net(torch.rand(1, 3, 16, 16))
    assert memory["0"] == BYTES * 2 * (3 + 8) * 256, "the largest run of each layer counts"
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.slow
def test_the_memory_of_the_dense_detector() -> None:
    # The finest output of the pyramid and the RPN's convolution: 256 channels in and out at a quarter of the size.
    assert int(cost_model(DETECTORS[0], 4).activation_memory({}, {})) == BYTES * 2 * 256 * 200 * 200


def test_widths_of_many_at_once_and_of_one_alone() -> None:
    model = cost_model("resnet56_cifar")
    many = model.activation_memory({}, {"stem": torch.tensor([4, 8, 16]).numpy(), "layer1": 8})
    assert many.tolist() == [int(model.activation_memory({}, {"stem": n, "layer1": 8})) for n in (4, 8, 16)]
    with pytest.raises(UsageError, match="the cost model has no layer 'conv7'"):
        model.activation_memory({"conv7": DecomposedLayer("cp", 1)}, {})


def test_a_search_within_activation_memory() -> None:
    limit = 0.8 * count_complexity(spec_from_configuration("resnet56_cifar", 2)).activation_memory
    found = search("resnet56_cifar", target_activation_memory=limit, rank=2, tolerance=0.2, limit=3)
    for candidate in found:
        counted = count_complexity(spec_from_configuration("resnet56_cifar", candidate.rank, candidate.rates))
        assert counted.activation_memory == candidate.activation_memory <= limit
    with pytest.raises(UsageError, match=r"below activation_memory 1; nearest.*, activation_memory \d"):
        search("resnet56_cifar", target_activation_memory=1, rank=2)
