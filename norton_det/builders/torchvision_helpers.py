"""Torchvision's helpers around a ResNet, for pruned ones: torchvision's compute widths from the unpruned network."""

from collections.abc import Callable, Sequence

from torch import nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from norton_det.models.feature_maps import MAPS, StageMaps
from norton_det.models.rcnn_plan import WIDTH


def resnet_fpn_extractor(
    backbone: ResNet | StageMaps,
    trainable_layers: int | None,
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> BackboneWithFPN:
    """Return a ResNet-50 of any widths with a new feature pyramid, in place of torchvision's ``_resnet_fpn_extractor``.

    Args:
        backbone: of :func:`norton_det.backbone`, or a ResNet-50; its modules are used as they are.
        trainable_layers: how many of its last parts are trained, 0 to 5; None: as they are.
        returned_layers: the stages that the pyramid is built on.
        extra_blocks: what makes further maps; None is the pooling that gives "pool".
        norm_layer: of norms in the pyramid.

    Raises:
        UsageError: a number of layers outside 0 to 5.

    Example:
        >>> import norton_det as nd
        >>> from norton_det.builders.torchvision_helpers import resnet_fpn_extractor
        >>> resnet_fpn_extractor(nd.backbone(None), 3, returned_layers=(2, 3)).fpn.inner_blocks[0][0].in_channels
        512
    """
    maps = _maps(backbone)
    if trainable_layers is not None:
        maps.freeze(trainable_layers)
    levels = {MAPS[stage]: str(i) for i, stage in enumerate(returned_layers)}
    widths = maps.feature_info.channels(list(returned_layers))
    return BackboneWithFPN(maps, levels, widths, WIDTH, extra_blocks, norm_layer)


def deeplabv3_resnet(backbone: ResNet | StageMaps, num_classes: int, aux: bool | None = None) -> DeepLabV3:
    """Return DeepLabV3 on a ResNet-50 of any widths, in place of torchvision's ``_deeplabv3_resnet``.

    Args:
        backbone: of :func:`norton_det.backbone`, or a ResNet-50: dilated in stages 3 and 4 for maps of stride 8.
        num_classes: with the background.
        aux: with a second classifier on stage 3, for training.

    Example:
        >>> import norton_det as nd
        >>> from norton_det.builders.torchvision_helpers import deeplabv3_resnet
        >>> body = nd.backbone(None, replace_stride_with_dilation=(False, True, True))
        >>> body.strides, deeplabv3_resnet(body, 5).classifier[-1].out_channels
        ((4, 8, 8, 8), 5)
    """
    maps = _maps(backbone)
    third, fourth = maps.feature_info.channels([3, 4])
    layers = {"layer4": "out", **({"layer3": "aux"} if aux else {})}
    head = FCNHead(third, num_classes) if aux else None
    return DeepLabV3(IntermediateLayerGetter(maps, layers), DeepLabHead(fourth, num_classes), head)


def _maps(backbone: ResNet | StageMaps) -> StageMaps:
    return backbone if isinstance(backbone, StageMaps) else StageMaps(backbone)
