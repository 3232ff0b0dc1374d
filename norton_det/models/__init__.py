"""The plain networks, their channel plans and the order of their rates."""

from norton_det.models import resnet, resnet_cifar
from norton_det.models.architecture import ARCHITECTURES, Architecture

__all__ = ["ARCHITECTURES", "Architecture", "resnet", "resnet_cifar"]
