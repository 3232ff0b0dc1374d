"""Class activation maps show the place that counts, and leave the network as it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Refused
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.visualization.cam import check_cam, class_map, pyramid_map, with_map

pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed: norton-det[cam]")


class Brightness(nn.Module):
    """A classifier: class 0 is how red an image is, class 1 how green."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:2, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.pool(self.features(x)))


def test_a_class_is_where_its_evidence_is() -> None:
    net = Brightness().requires_grad_(False)
    image = torch.zeros(1, 3, 32, 32)
    image[0, 0, 4:12, 4:12] = 1
    image[0, 1, 20:28, 20:28] = 1
    for label, start in ((0, 4), (1, 20)):
        found = class_map(net, image, label)
        assert found.shape == (32, 32)
        expected = torch.zeros(32, 32)
        expected[start : start + 8, start : start + 8] = 1
        torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


class Pyramid(nn.Module):
    """A backbone whose levels are the image in two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.fpn = nn.Module()
        self.fpn.layer_blocks = nn.ModuleList([nn.AvgPool2d(2), nn.AvgPool2d(4)])

    def forward(self, x: Tensor) -> Any:
        return [level(x) for level in self.fpn.layer_blocks]


def test_a_pyramid_stands_out_where_the_object_is_and_not_in_the_padding() -> None:
    transform = GeneralizedRCNNTransform(60, 200, [0.0] * 3, [1.0] * 3)
    detector = SimpleNamespace(transform=transform.eval(), backbone=Pyramid().eval())
    image = torch.full((3, 60, 90), 0.9)  # it is padded with zeros to 64 x 96
    image[:, 40:56, 60:76] = 0
    found = pyramid_map(detector, image)
    assert found.shape == (60, 90)
    assert 0 <= found.min() <= found.max() <= 1
    assert found[44:52, 64:72].min() > 0.9
    assert found[:30, :50].max() < 0.1
    assert found[-2:, :50].max() < 0.1


def test_a_map_colours_the_image() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    where = torch.zeros(8, 8)
    where[:, 4:] = 1
    painted = with_map(image, where)
    assert painted.shape == image.shape
    low, high = painted[:, 0, 0].int(), painted[:, 0, -1].int()
    assert (painted[:, :, :4] == low[:, None, None]).all()
    assert low[2] > high[2]
    assert high[0] > low[0]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    refused(check_cam, 2, "pip install norton-det[cam]")
