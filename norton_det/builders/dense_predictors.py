"""RetinaNet, FCOS and DeepLabV3 on a compressed ResNet-50, with torchvision's signatures, known to ``get_model``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, WeightsEnum
from torchvision.models.detection import FCOS, FCOS_ResNet50_FPN_Weights, RetinaNet, RetinaNet_ResNet50_FPN_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from norton_det.builders.backbone import backbone_of
from norton_det.builders.backbone_networks import Backbone
from norton_det.builders.backbone_source import STEMS, Source, backbone_in, read_backbone
from norton_det.builders.torchvision_helpers import deeplabv3_resnet, resnet_fpn_extractor
from norton_det.errors import UsageError
from norton_det.models.rcnn_plan import WIDTH
from norton_det.models.state_dicts import read_state_dict
from norton_det.models.weights import load_state, named_weights, published_state
from norton_det.registry import torchvision_builder

# torchvision.models.get_model_weights reads these annotations: no "from __future__ import annotations" in this file.

_DETECTED, _SEGMENTED = 91, 21  # torchvision's numbers of classes


@torchvision_builder
def retinanet_cpresnet50_fpn(
    *,
    weights: RetinaNet_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """RetinaNet with FPN on a compressed ResNet-50; inputs and outputs as of torchvision's ``retinanet_resnet50_fpn``.

    Args:
        weights: a state dict of such a network, compressed as its tensors are; or torchvision's, for the dense one.
        progress: show the progress of a download.
        num_classes: background included; None takes it from torchvision's weights, or else 91.
        weights_backbone: what :func:`norton_det.backbone` reads. Not read where ``weights`` is given, as in
            torchvision.
        trainable_backbone_layers: 0 to 5; None: as of :func:`norton_det.backbone`.
        kwargs: for torchvision's ``RetinaNet``.

    Raises:
        UsageError: wrong weights, or another number of classes.
        DataError: a file that is missing, damaged or does not fit.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> detector = nd.retinanet_cpresnet50_fpn(num_classes=3, min_size=64).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    given = _given(RetinaNet_ResNet50_FPN_Weights, weights, weights_backbone, num_classes, _DETECTED, progress)
    pyramid = _pyramid(backbone_of(given.source, trainable_layers=trainable_backbone_layers))
    return given.load(RetinaNet(pyramid, given.num_classes, **kwargs))


@torchvision_builder
def fcos_cpresnet50_fpn(
    *,
    weights: FCOS_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """FCOS with FPN on a compressed ResNet-50; inputs and outputs as of torchvision's ``fcos_resnet50_fpn``.

    Arguments and errors are those of :func:`retinanet_cpresnet50_fpn`, ``kwargs`` are for torchvision's ``FCOS``.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> detector = nd.fcos_cpresnet50_fpn(num_classes=3, min_size=64).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    given = _given(FCOS_ResNet50_FPN_Weights, weights, weights_backbone, num_classes, _DETECTED, progress)
    pyramid = _pyramid(backbone_of(given.source, trainable_layers=trainable_backbone_layers))
    return given.load(FCOS(pyramid, given.num_classes, **kwargs))


@torchvision_builder
def deeplabv3_cpresnet50(
    *,
    weights: DeepLabV3_ResNet50_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """DeepLabV3 on a compressed ResNet-50: images (N, 3, H, W) to a dict with "out", logits (N, num_classes, H, W).

    As torchvision's ``deeplabv3_resnet50``: stages 3 and 4 are dilated, all layers and batch norms are trained.

    Args:
        weights: a state dict of such a network, compressed as its tensors are; or torchvision's, for the dense one.
        progress: show the progress of a download.
        num_classes: background included; None takes it from torchvision's weights, or else 21.
        aux_loss: with a second classifier, whose logits are "aux"; None: where ``weights`` have one.
        weights_backbone: what :func:`norton_det.backbone` reads. Not read where ``weights`` is given, as in
            torchvision.
        kwargs: unused, as in torchvision.

    Raises:
        UsageError: wrong weights, or another number of classes; a backbone that is dilated in another way.
        DataError: a file that is missing, damaged or does not fit.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> net = nd.deeplabv3_cpresnet50(num_classes=3).eval()
        >>> net(torch.rand(1, 3, 64, 64))["out"].shape
        torch.Size([1, 3, 64, 64])
    """
    given = _given(DeepLabV3_ResNet50_Weights, weights, weights_backbone, num_classes, _SEGMENTED, progress)
    aux = any(name.startswith("aux_classifier.") for name in given.state) if aux_loss is None else aux_loss
    body = backbone_of(given.source, norm="train", trainable_layers=5, dilated=(False, True, True))
    return given.load(deeplabv3_resnet(body, given.num_classes, aux))


class _Given(NamedTuple):
    """The weights that were given: those of the backbone, and those of all of the network, if any."""

    source: Source
    num_classes: int
    state: Mapping[str, Tensor]
    name: str

    def load(self, net: nn.Module) -> nn.Module:
        """Return the network with these weights."""
        if self.state:
            load_state(net, self.state, self.name)
        return net


def _given(
    enum: type[WeightsEnum],
    weights: str | Path | WeightsEnum | None,
    weights_backbone: str | Path | WeightsEnum | None,
    num_classes: int | None,
    default: int,
    progress: bool,
) -> _Given:
    if weights is None:
        source = read_backbone(weights_backbone, progress=progress).without_pyramid()
        return _Given(source, num_classes or default, {}, source.name)
    named = named_weights(enum, weights)
    if named is None:
        state, name = read_state_dict(str(weights), STEMS), str(weights)
    else:
        state, name, default = published_state(named, progress=progress), str(named), len(named.meta["categories"])
        if num_classes not in (None, default):
            raise UsageError(f"num_classes is {num_classes}; {named} has {default}")
    return _Given(backbone_in(state, name).without_pyramid(), num_classes or default, state, name)


def _pyramid(body: Backbone) -> Any:
    """Return a backbone with the pyramid of one-stage detectors: stages 2 to 4, and two smaller maps."""
    return resnet_fpn_extractor(body, None, (2, 3, 4), LastLevelP6P7(WIDTH, WIDTH))
