"""The plain networks, their channel plans and the order of their rates."""

from norton_det.models import densenet, resnet, resnet_cifar, vgg
from norton_det.models.architecture import ARCHITECTURES, Architecture

CLASSIFIERS = tuple(ARCHITECTURES)
"""The architectures of this folder; detection registers its own later."""

__all__ = ["ARCHITECTURES", "CLASSIFIERS", "Architecture", "densenet", "resnet", "resnet_cifar", "vgg"]
