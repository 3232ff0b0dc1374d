"""Builders of the classifiers, known to ``torchvision.models.get_model``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import ResNet50_Weights

from norton_det.checkpoint import has_spec, load
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.weights import initial_network
from norton_det.registry import torchvision_builder


def _classifier(arch: str, weights: Any, num_classes: int | None, progress: bool) -> nn.Module:
    if isinstance(weights, (str, Path)) and has_spec(weights):
        net, spec = load(weights)
        if spec.arch != arch:
            raise UsageError(f"weights {weights}: is a {spec.arch}; expected a {arch}")
        if num_classes not in (None, spec.num_classes):
            raise UsageError(f"num_classes is {num_classes}; {weights} has {spec.num_classes}")
        return net.train()
    return initial_network(ARCHITECTURES[arch], weights, num_classes=num_classes, progress=progress)[0]


@torchvision_builder
def cpresnet50(
    *,
    weights: ResNet50_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
) -> nn.Module:
    """ResNet-50, compressed as its weights are: images (N, 3, H, W) to logits (N, num_classes).

    Args:
        weights: a file of ``norton_det.save``; or a state-dict file or torchvision's weights, for the dense network.
        progress: show the progress of a download.
        num_classes: None takes it from the weights, or else 1000.

    Raises:
        UsageError: the file holds another architecture or number of classes.
        DataError: the file is missing, damaged or does not fit.

    Example:
        >>> import norton_det as nd
        >>> nd.cpresnet50(weights=None, num_classes=5).fc.out_features
        5
    """
    return _classifier("resnet50", weights, num_classes, progress)


def _cifar_builder(arch: str, title: str) -> Callable[..., nn.Module]:
    def builder(
        *, weights: str | Path | None = None, progress: bool = True, num_classes: int | None = None
    ) -> nn.Module:
        return _classifier(arch, weights, num_classes, progress)

    builder.__name__ = builder.__qualname__ = arch
    builder.__doc__ = f"""{title} for CIFAR, compressed as its weights are: images (N, 3, 32, 32) to (N, num_classes).

    Args:
        weights: a file of ``norton_det.save``, or a state-dict file for the dense network.
        progress: as in torchvision; nothing is downloaded.
        num_classes: None takes it from the weights, or else 10.

    Raises:
        UsageError: the file holds another architecture or number of classes.
        DataError: the file is missing, damaged or does not fit.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> nd.{arch}(weights=None, num_classes=5).eval()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    return torchvision_builder(builder)


vgg16_bn_cifar = _cifar_builder("vgg16_bn_cifar", "VGG-16 with batch norm")
resnet56_cifar = _cifar_builder("resnet56_cifar", "ResNet-56")
resnet110_cifar = _cifar_builder("resnet110_cifar", "ResNet-110")
densenet40_cifar = _cifar_builder("densenet40_cifar", "DenseNet-40")
