"""The cost model against the count, of layers beside the channel plan too."""

from pathlib import Path

import pytest
import torch
from torch import nn

import norton_det as nd
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import DecomposedLayer, Spec

BESIDE = {
    "fasterrcnn_cpresnet50_fpn": ("backbone.fpn.layer_blocks.1.0", "rpn.head.conv.0.0"),
    "maskrcnn_cpresnet50_fpn": ("backbone.fpn.inner_blocks.2.0", "roi_heads.mask_head.0.0"),
    "maskrcnn_cpresnet50_fpn_v2": ("rpn.head.conv.1.0", "roi_heads.box_head.2.0"),
    "keypointrcnn_cpresnet50_fpn": ("backbone.fpn.layer_blocks.0.0", "roi_heads.keypoint_head.0"),
}


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.slow] * (arch != "maskrcnn_cpresnet50_fpn")) for arch in BESIDE]
)
def test_layers_beside_the_plan_cost_what_is_counted(arch: str) -> None:
    first, second = BESIDE[arch]
    decompositions = {
        first: DecomposedLayer("cp", 1),
        second: DecomposedLayer("tucker2", (16, 24)),
        "backbone.body.layer3.0.conv2": DecomposedLayer("cp", 2),
    }
    spec = Spec(arch, 3, decompositions, widths={"layer1": 200, "layer2": 333})
    counted, model = nd.count_complexity(spec), CostModel(ARCHITECTURES[arch], spec)
    costs = model.at(decompositions, spec.widths)
    assert costs == (counted.macs, counted.macs_published, counted.params)
    assert model.activation_memory(decompositions, spec.widths) == counted.activation_memory
    assert all(before > after for before, after in zip(model.at({}, {}), costs, strict=True))


class Separable(nn.Sequential):
    """Depthwise convolutions, which a plan lists as layers that work in place."""

    def __init__(self, num_classes: int) -> None:
        first = [nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
        second = [nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.Conv2d(12, 20, 1, bias=False), nn.ReLU()]
        super().__init__(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))


def test_depthwise_convolutions_of_a_derived_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    plan = nd.derive_plan(Separable(5), torch.rand(1, 3, 32, 32)).plan
    rates = tuple(nd.RateEntry(group, (group,)) for group in plan.widths)
    small = nd.Architecture("separable", Separable, plan, rates, 5, 32, classifier="9", dataset="cifar10")
    nd.register_architecture(small)
    net, spec = nd.compress(None, arch="separable", rank=1, rates=[0.25, 0.4])
    assert net[3].groups == net[3].in_channels == spec.widths["0"] == 9
    counted, costs = nd.count_complexity(spec), CostModel(small).at(spec.decompositions, spec.widths)
    for name in ("macs", "macs_published", "params"):
        assert getattr(costs, name) == getattr(counted, name)
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, _ = nd.load(tmp_path / "net.safetensors")
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(image), net.eval()(image))


def test_a_layer_that_there_is_not_is_refused() -> None:
    model = CostModel(ARCHITECTURES["resnet56_cifar"])
    with pytest.raises(UsageError, match=r"the cost model has no layer 'conv7'; expected one of: conv1, "):
        model.at({"conv7": DecomposedLayer("cp", 1)}, {})
