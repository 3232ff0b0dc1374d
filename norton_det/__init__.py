"""NORTON network compression as a torchvision detection extension."""

from norton_det.builders import fasterrcnn_cpresnet50_fpn, keypointrcnn_cpresnet50_fpn, maskrcnn_cpresnet50_fpn
from norton_det.builders.classifiers import (
    cpresnet50,
    densenet40_cifar,
    resnet56_cifar,
    resnet110_cifar,
    vgg16_bn_cifar,
)
from norton_det.checkpoint import load, save
from norton_det.compression.compress import compress
from norton_det.compression.decompose import decompose
from norton_det.compression.prune import prune
from norton_det.cost.budget import Budget
from norton_det.cost.complexity import count_complexity
from norton_det.decompositions import CPConv2d, TuckerConv2d
from norton_det.deployment.deploy import deploy
from norton_det.reporting.published import published
from norton_det.spec import Spec
from norton_det.structure.build import build
from norton_det.training.reconstruction import reconstruct

__all__ = [
    "Budget",
    "CPConv2d",
    "Spec",
    "TuckerConv2d",
    "build",
    "compress",
    "count_complexity",
    "cpresnet50",
    "decompose",
    "densenet40_cifar",
    "deploy",
    "fasterrcnn_cpresnet50_fpn",
    "keypointrcnn_cpresnet50_fpn",
    "load",
    "maskrcnn_cpresnet50_fpn",
    "prune",
    "published",
    "reconstruct",
    "resnet56_cifar",
    "resnet110_cifar",
    "save",
    "vgg16_bn_cifar",
]
