"""VGG-16 with batch norm for CIFAR (Simonyan and Zisserman, arXiv:1409.1556, configuration D).

Thirteen 3x3 convolutions; the classifier has one hidden layer of 512 units with batch norm.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.models.architecture import Architecture, RateEntry, register_architecture

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN = 512


class CifarVGG(nn.Module):
    """VGG-16 for 32x32 images: four max poolings between five stages, an average over what is left.

    Args:
        num_classes: outputs of the classifier.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(channels, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


def _conv_names() -> list[str]:
    """Return the names of the thirteen convolutions."""
    with torch.device("meta"):
        features = CifarVGG().features
    return [f"features.{i}" for i, module in enumerate(features) if isinstance(module, nn.Conv2d)]


def _plan(convs: list[str]) -> ChannelPlan:
    widths = dict(zip(convs, (width for stage in _STAGES for width in stage), strict=True))
    layers = [Layer(convs[0], (), convs[0])]
    layers += [Layer(conv, (source,), conv) for source, conv in pairwise(convs)]
    # A convolution's batch norm is the module after it.
    norms = [Layer.norm(f"features.{int(conv.split('.')[1]) + 1}", (conv,)) for conv in convs]
    ordered = [layer for pair in zip(layers, norms, strict=True) for layer in pair]
    return ChannelPlan(widths, (*ordered, Layer("classifier.0", (convs[-1],))))


_CONVS = _conv_names()

register_architecture(
    Architecture(
        "vgg16_bn_cifar",
        CifarVGG,
        _plan(_CONVS),
        rate_order=tuple(RateEntry(conv, (conv,)) for conv in _CONVS),
        num_classes=10,
        image_size=32,
        classifier="classifier.3",
        dataset="cifar10",
    ),
)
