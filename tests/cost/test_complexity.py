"""Counting multiply-accumulates and parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, resnet50

import norton_det as nd
from norton_det.cost.complexity import Complexity
from norton_det.decompositions import set_implementation
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 6, 7)
    )
    cost = nd.count_complexity(net, (10, 12))
    conv, linear, norm = 3 * 4 * 9 * 5 * 6, 4 * 5 * 6 * 7, 4 * 5 * 6
    assert cost.macs == conv + linear
    assert cost.macs_published == conv + linear + 3 * norm
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert [(layer.name, layer.macs) for layer in cost.layers] == [("0", conv), ("4", linear)]
    assert net.training


def test_a_strided_block_runs_its_pointwise_convolution_at_the_input() -> None:
    block = nd.CPConv2d(8, 6, 3, rank=2, stride=2, padding=1)
    cost = nd.count_complexity(nn.Sequential(nn.Conv2d(3, 8, 1), block), 16)
    pointwise, vertical, horizontal = 8 * 12 * 16 * 16, 12 * 3 * 8 * 16, 12 * 3 * 8 * 8
    assert cost.layers[1].macs == pointwise + vertical + horizontal
    assert [layer.kind for layer in cost.layers] == ["Conv2d", "CPConv2d"]
    assert cost.layers[1].params == 8 * 12 + 12 * 3 + 12 * 3 + 6


class Mixed(nn.Module):
    """A network that convolves and multiplies outside of layers too, and runs a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.again = nn.Sequential(nn.Conv2d(8, 8, (2, 3), padding="valid"), nn.ReLU())
        self.other_name = self.again[0]
        self.weight = nn.Parameter(torch.ones(4, 8, 1, 1))
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.other_name(self.again(self.first(x))), self.weight).flatten(2).mT
        return self.attention(y, y, y)[0]


def check_rows(cost: Complexity) -> None:
    """Rows add up, every layer is counted, and no parameter twice."""
    assert sum(layer.macs for layer in cost.layers) == cost.macs
    assert sum(layer.macs_per_detection for layer in cost.layers) == cost.macs_per_detection
    assert len({layer.name for layer in cost.layers}) == len(cost.layers)
    assert sum(layer.params for layer in cost.layers) <= cost.params


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.slow] * ("_v2" in arch)) for arch in ARCHITECTURES]
)
def test_rows_add_up(arch: str) -> None:
    plan = ARCHITECTURES[arch].plan
    classes = 3 if ARCHITECTURES[arch].classifier else 0
    net = nd.build(nd.Spec(arch, classes))
    convs = [layer.name for layer in plan.layers if isinstance(net.get_submodule(layer.name), nn.Conv2d)][1:3]
    layers = {convs[0]: nd.DecomposedLayer("cp", 2), convs[1]: nd.DecomposedLayer("tucker2", (3, 5))}
    cost = nd.count_complexity(nd.Spec(arch, classes, layers), min(64, ARCHITECTURES[arch].image_size))
    check_rows(cost)
    assert all(layer.macs > 0 or layer.macs_per_detection > 0 for layer in cost.layers)


def test_rows_add_up_where_modules_do_more_than_their_layers() -> None:
    net = Mixed()
    cost = nd.count_complexity(net, 8)
    check_rows(cost)
    macs = {layer.name: layer.macs for layer in cost.layers}
    assert macs["first"] == 3 * 8 * 9 * 64
    assert sum(macs[name] for name in macs if name in ("again.0", "other_name")) == 8 * 8 * 6 * (7 * 6 + 6 * 4)
    assert macs[""] == 8 * 4 * 6 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_count_does_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nd.CPConv2d(8, 6, 3, rank=2))
    expected = nd.count_complexity(net, 16)
    assert nd.count_complexity(net.to(dtype), 16) == expected
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}


def test_the_count_does_not_depend_on_the_implementation_in_training() -> None:
    net = nn.Sequential(nd.CPConv2d(8, 6, 3, rank=2), nd.TuckerConv2d.from_conv(nn.Conv2d(6, 9, 3), 2))
    expected = nd.count_complexity(nn.Sequential(nn.Conv2d(3, 8, 3), net), 16)
    set_implementation(net, "dense")
    assert nd.count_complexity(nn.Sequential(nn.Conv2d(3, 8, 3), net), 16) == expected
    assert {net[0].implementation, net[1].implementation} == {"dense"}


def test_the_dense_resnet50() -> None:
    cost = nd.count_complexity(nd.Spec("resnet50", 1000))
    assert (cost.params, cost.macs) == (25_557_032, 4_089_184_256)  # torchvision's own figures
    assert cost == nd.count_complexity(resnet50(), 224)
    assert sum(layer.macs for layer in cost.layers) == cost.macs


@pytest.mark.parametrize(
    ("name", "per_detection"),
    [
        ("fasterrcnn_{}_fpn", 0),
        ("keypointrcnn_{}_fpn", 3_495_460_864),
        pytest.param("fasterrcnn_{}_fpn_v2", 0, marks=pytest.mark.slow),
    ],
)
def test_dense_detectors(name: str, per_detection: int) -> None:
    weights = get_model_weights(name.format("resnet50")).DEFAULT
    cost = nd.count_complexity(nd.Spec(name.format("cpresnet50"), len(weights.meta["categories"])))
    dense = get_model(name.format("resnet50"), weights=None, weights_backbone=None)
    assert cost == nd.count_complexity(dense)
    assert cost.image_size == (800, 800)
    assert cost.macs_per_detection == per_detection
    if name.startswith("faster"):
        assert cost.macs / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.005)  # torchvision's documented figure
    if name.endswith("_v2"):  # the norms of the first version are frozen there: no parameters
        assert cost.params == weights.meta["num_params"]


def test_the_count_does_not_depend_on_weights() -> None:
    net = get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=3)
    before = nd.count_complexity(net, 320)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert nd.count_complexity(net, 320) == before


def test_a_classifier_needs_a_size() -> None:
    with pytest.raises(UsageError, match="image_size is None"):
        nd.count_complexity(nn.Conv2d(3, 3, 3))
