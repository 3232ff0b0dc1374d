"""Networks of a test's size that are exported, shared by the tests of export."""

from dataclasses import replace
from typing import Any

import torch
from conftest import TINY
from statistics_of_norms import with_statistics
from test_cuda import narrow
from torch import nn

import norton_det as nd
from norton_det.structure.settings import spec_from_configuration


def small() -> nn.Module:
    """Return a classifier of two classes with a batch norm."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return with_statistics(nn.Sequential(*layers))


def narrow_detector(arch: str, *, as_a_whole: bool = False) -> tuple[Any, nd.Spec]:
    """Return a detector of random weights whose detections differ between images, with scores above 0.3."""
    net: Any
    net, spec = whole(arch) if as_a_whole else narrow(arch)
    with_statistics(net)
    net.roi_heads.box_predictor.cls_score.weight.data *= 20
    return net, spec


def whole(arch: str) -> tuple[nn.Module, nd.Spec]:
    """Return a detector that is compressed as a whole."""
    architecture = nd.models.ARCHITECTURES[arch]
    rates = [0.3] * 20 + [0.9] * (len(architecture.scopes["detector"].rates) - 20)
    options: dict[str, Any] = {"decomposition": "tucker2", "scope": "detector"}
    spec = spec_from_configuration(arch, 8, rates, num_classes=2 if arch.startswith("keypoint") else 3, **options)
    keypoints = {"num_keypoints": 4} if arch.startswith("keypoint") else {}
    torch.manual_seed(0)
    spec = replace(spec, options={**TINY, **keypoints})
    return nd.build(spec), spec
