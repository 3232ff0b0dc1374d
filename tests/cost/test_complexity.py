"""Counting multiply-accumulates and parameters."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model, resnet50

import norton_det as nd
from norton_det.errors import UsageError


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


def test_the_dense_resnet50() -> None:
    cost = nd.count_complexity(nd.Spec("resnet50", 1000))
    assert (cost.params, cost.macs) == (25_557_032, 4_089_184_256)  # torchvision's own figures
    assert cost == nd.count_complexity(resnet50(), 224)
    assert sum(layer.macs for layer in cost.layers) == cost.macs


@pytest.mark.parametrize(("kind", "per_detection"), [("faster", 0), ("keypoint", 3_495_460_864)])
def test_dense_detectors(kind: str, per_detection: int) -> None:
    spec = nd.Spec(f"{kind}rcnn_cpresnet50_fpn", 91 if kind == "faster" else 2)
    cost = nd.count_complexity(spec)
    dense = get_model(f"{kind}rcnn_resnet50_fpn", weights=None, weights_backbone=None)
    assert cost == nd.count_complexity(dense)
    assert cost.image_size == (800, 800)
    assert cost.macs_per_detection == per_detection
    if kind == "faster":
        assert cost.macs / 1e9 == pytest.approx(134.38, abs=0.005)  # torchvision's documented figure


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
