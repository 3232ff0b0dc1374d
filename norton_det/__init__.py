"""NORTON network compression as a torchvision detection extension."""

from norton_det.builders import (
    fasterrcnn_cpresnet50_fpn,
    fasterrcnn_cpresnet50_fpn_v2,
    keypointrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn_v2,
)
from norton_det.builders.backbone import backbone
from norton_det.builders.classifiers import (
    cpresnet50,
    densenet40_cifar,
    resnet56_cifar,
    resnet110_cifar,
    vgg16_bn_cifar,
)
from norton_det.builders.dense_predictors import (
    deeplabv3_cpresnet50,
    fcos_cpresnet50_fpn,
    retinanet_cpresnet50_fpn,
)
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.channels.trace import DerivedPlan, derive_plan
from norton_det.checkpoint import load, save
from norton_det.compression.compress import compress
from norton_det.compression.decompose import decompose
from norton_det.compression.prune import prune
from norton_det.cost.budget import Budget
from norton_det.cost.complexity import count_complexity
from norton_det.decompositions import CPConv2d, LowRank, TuckerConv2d
from norton_det.deployment.deploy import deploy
from norton_det.export.network import export_network
from norton_det.export.onnx_network import load_onnx
from norton_det.inference.load import load_detector
from norton_det.inference.predict import predict
from norton_det.models import Architecture, RateEntry, register_architecture
from norton_det.reporting.published import published
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build
from norton_det.training.reconstruction import reconstruct
from norton_det.version import __version__

__all__ = [
    "Architecture",
    "Budget",
    "CPConv2d",
    "ChannelPlan",
    "DecomposedLayer",
    "DerivedPlan",
    "Layer",
    "LowRank",
    "RateEntry",
    "Spec",
    "TuckerConv2d",
    "__version__",
    "backbone",
    "build",
    "compress",
    "count_complexity",
    "cpresnet50",
    "decompose",
    "deeplabv3_cpresnet50",
    "densenet40_cifar",
    "deploy",
    "derive_plan",
    "export_network",
    "fasterrcnn_cpresnet50_fpn",
    "fasterrcnn_cpresnet50_fpn_v2",
    "fcos_cpresnet50_fpn",
    "keypointrcnn_cpresnet50_fpn",
    "load",
    "load_detector",
    "load_onnx",
    "maskrcnn_cpresnet50_fpn",
    "maskrcnn_cpresnet50_fpn_v2",
    "predict",
    "prune",
    "published",
    "reconstruct",
    "register_architecture",
    "resnet56_cifar",
    "resnet110_cifar",
    "retinanet_cpresnet50_fpn",
    "save",
    "vgg16_bn_cifar",
]
