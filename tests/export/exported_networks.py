"""Networks of a test's size that are exported, shared by the tests of export."""

from dataclasses import replace
from typing import Any

import torch
from conftest import TINY
from statistics_of_norms import with_statistics
from test_cuda import narrow
from torch import Tensor, nn

import norton_det as nd
from norton_det.export.images import generated_images
from norton_det.structure.settings import spec_from_configuration


def small() -> nn.Module:
    """Return a classifier of two classes with a batch norm."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return with_statistics(nn.Sequential(*layers))


def narrow_detector(arch: str, *, as_a_whole: bool = False, num_classes: int = 3) -> tuple[Any, nd.Spec]:
    """Return a detector of random weights whose detections differ between images, with scores above 0.3."""
    spec = whole(arch) if as_a_whole else narrow(arch)[1]
    if not arch.startswith("keypoint"):
        spec = replace(spec, num_classes=num_classes)
    torch.manual_seed(0)
    net: Any = with_statistics_of(nd.build(spec), generated_images((64, 80), {}))
    classifier = net.roi_heads.box_predictor.cls_score
    classifier.weight.data *= 10
    classifier.bias.data[0] -= 5  # the background
    return net, spec


def with_statistics_of(net: nn.Module, images: list[Tensor]) -> nn.Module:
    """Give batch norms the statistics of their inputs, so that outputs depend on the image, and return the network."""
    net.eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        net(images)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return net.eval()


def whole(arch: str) -> nd.Spec:
    """Return the spec of a detector that is compressed as a whole."""
    architecture = nd.models.ARCHITECTURES[arch]
    rates = [0.8] * 20 + [0.5] * (len(architecture.scopes["detector"].rates) - 20)
    options: dict[str, Any] = {"decomposition": "tucker2", "scope": "detector"}
    spec = spec_from_configuration(arch, 8, rates, num_classes=2 if arch.startswith("keypoint") else 3, **options)
    keypoints = {"num_keypoints": 4} if arch.startswith("keypoint") else {}
    return replace(spec, options={**TINY, **keypoints})
