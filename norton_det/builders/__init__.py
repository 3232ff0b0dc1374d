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
    fasterrcnn_cpresnet50_fpn_v2,
    keypointrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn_v2,
)
from norton_det.builders.fine_tuning import freeze_backbone
from norton_det.builders.new_classes import with_classes
from norton_det.builders.new_detector import make_detector

__all__ = [
    "cpresnet50",
    "densenet40_cifar",
    "fasterrcnn_cpresnet50_fpn",
    "fasterrcnn_cpresnet50_fpn_v2",
    "freeze_backbone",
    "keypointrcnn_cpresnet50_fpn",
    "make_detector",
    "maskrcnn_cpresnet50_fpn",
    "maskrcnn_cpresnet50_fpn_v2",
    "resnet56_cifar",
    "resnet110_cifar",
    "vgg16_bn_cifar",
    "with_classes",
]
