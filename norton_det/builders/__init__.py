"""Builders of compressed networks, as torchvision's models have them: classifiers and detectors."""

from norton_det.builders.classifiers import (
    cpresnet50,
    densenet40_cifar,
    resnet56_cifar,
    resnet110_cifar,
    vgg16_bn_cifar,
)
from norton_det.builders.detectors import (
    fasterrcnn_cpresnet50_fpn,
    freeze_backbone,
    keypointrcnn_cpresnet50_fpn,
    make_detector,
    maskrcnn_cpresnet50_fpn,
)

__all__ = [
    "cpresnet50",
    "densenet40_cifar",
    "fasterrcnn_cpresnet50_fpn",
    "freeze_backbone",
    "keypointrcnn_cpresnet50_fpn",
    "make_detector",
    "maskrcnn_cpresnet50_fpn",
    "resnet56_cifar",
    "resnet110_cifar",
    "vgg16_bn_cifar",
]
