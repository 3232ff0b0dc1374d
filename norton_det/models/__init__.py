"""The plain networks, their channel plans and the order of their rates."""

from norton_det.models import densenet, resnet, resnet_cifar, vgg
from norton_det.models.architecture import ARCHITECTURES, Architecture

__all__ = ["ARCHITECTURES", "Architecture", "densenet", "resnet", "resnet_cifar", "vgg"]
