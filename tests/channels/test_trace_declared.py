"""The plans that the architectures declare are those that are derived from their networks."""

from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn
from written_plans import renamed

import norton_det as nd
from norton_det.models import ARCHITECTURES
from norton_det.structure.build import build

QUICK = ("resnet56_cifar", "fasterrcnn_cpresnet50_fpn")
# A classifier's hidden layer, which is not pruned in the publication.
NOT_DECLARED = {"vgg16_bn_cifar": {"classifier.0"}}


def dense(arch: str) -> tuple[nn.Module, Any]:
    """Return a random network of an architecture, and an example on which all of its layers run."""
    architecture = ARCHITECTURES[arch]
    torch.manual_seed(0)
    if architecture.task.name == "detection":
        net = architecture.build(num_classes=3, box_score_thresh=0.0, **TINY)
        return net, architecture.task.example(64)
    return architecture.build(num_classes=3), torch.rand(2, 3, 32, 32)


def within(plan: nd.ChannelPlan, hidden: set[str]) -> nd.ChannelPlan:
    """Return a plan without some groups."""
    layers = []
    for layer in plan.layers:
        reads = tuple(group for group in layer.reads if group not in hidden)
        writes = None if layer.writes in hidden else layer.writes
        if reads or writes:
            layers.append(nd.Layer(layer.name, reads, writes, layer.in_place, layer.spatial))
    widths = {group: width for group, width in plan.widths.items() if group not in hidden}
    return nd.ChannelPlan(widths, tuple(layers), plan.separate - hidden)


@pytest.mark.parametrize(
    "arch",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
        if ARCHITECTURES[name].task.name != "features"  # what a network returns stays whole in a derived plan
    ],
)
def test_derived_equals_declared(arch: str) -> None:
    net, example = dense(arch)
    derived = nd.derive_plan(net, example)
    hidden = NOT_DECLARED.get(arch, set())
    assert hidden <= derived.plan.widths.keys()
    assert renamed(within(derived.plan, hidden)) == renamed(ARCHITECTURES[arch].plan)
    # The order is one of computation: what a layer reads has been written before.
    written: set[str | None] = set()
    for layer in derived.plan.layers:
        assert written.issuperset(layer.reads)
        written.add(layer.writes)
    predictions = {layer.name for layer in derived.plan.layers if not (layer.writes or layer.in_place)}
    assert derived.whole.keys() == predictions


def test_a_decomposed_network_has_the_same_plan() -> None:
    plan = ARCHITECTURES["resnet56_cifar"].plan
    layers = {"layer1.0.conv1": nd.DecomposedLayer("cp", 1), "layer2.3.conv2": nd.DecomposedLayer("tucker2", (4, 4))}
    net = build(nd.Spec("resnet56_cifar", 10, decompositions=layers))
    assert renamed(nd.derive_plan(net, torch.rand(2, 3, 32, 32)).plan) == renamed(plan)


def test_a_different_plan_is_told_apart() -> None:
    plan = ARCHITECTURES["resnet50"].plan
    assert renamed(within(plan, {"stem"})) != renamed(plan)
    assert renamed(nd.ChannelPlan(plan.widths, plan.layers, frozenset({"stem"}))) != renamed(plan)
