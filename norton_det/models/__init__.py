"""The plain networks, their channel plans and the order of their rates."""

import norton_det.models.densenet
import norton_det.models.rcnn
import norton_det.models.resnet
import norton_det.models.resnet_cifar
import norton_det.models.vgg  # noqa: F401  each registers its architectures
from norton_det.models.architecture import (
    ARCHITECTURES,
    Architecture,
    RateEntry,
    classifiers,
    register_architecture,
)

__all__ = ["ARCHITECTURES", "Architecture", "RateEntry", "classifiers", "register_architecture"]
