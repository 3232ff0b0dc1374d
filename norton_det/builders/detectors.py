"""Builders of compressed detectors with torchvision's signature, known to ``torchvision.models.get_model``."""

from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

from norton_det.builders.new_detector import make_detector
from norton_det.registry import torchvision_builder

# torchvision.models.get_model_weights reads these annotations: no "from __future__ import annotations" in this file.


@torchvision_builder
def fasterrcnn_cpresnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Faster R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    In training mode it maps images (3, H, W) and targets to a dict of losses; in evaluation mode images to a list of
    dicts with boxes (N, 4) as x1, y1, x2, y2, labels (N,), scores (N,).

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> detector = nd.fasterrcnn_cpresnet50_fpn(weights=None, num_classes=3, min_size=64).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    return make_detector(
        "fasterrcnn_cpresnet50_fpn",
        weights=weights,
        weights_backbone=weights_backbone,
        num_classes=num_classes,
        trainable_backbone_layers=trainable_backbone_layers,
        progress=progress,
        **kwargs,
    )[0]


@torchvision_builder
def maskrcnn_cpresnet50_fpn(
    *,
    weights: MaskRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Mask R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As Faster R-CNN, with masks (N, 1, H, W) of probabilities as well.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> options = {"min_size": 64, "box_detections_per_img": 2}
        >>> detector = nd.maskrcnn_cpresnet50_fpn(weights=None, num_classes=3, **options).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    return make_detector(
        "maskrcnn_cpresnet50_fpn",
        weights=weights,
        weights_backbone=weights_backbone,
        num_classes=num_classes,
        trainable_backbone_layers=trainable_backbone_layers,
        progress=progress,
        **kwargs,
    )[0]


@torchvision_builder
def keypointrcnn_cpresnet50_fpn(
    *,
    weights: KeypointRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Keypoint R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As Faster R-CNN, with keypoints (N, K, 3) as x, y, visibility and keypoints_scores (N, K) as well;
    ``num_keypoints=K``, 17 if not given.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> options = {"min_size": 64, "box_detections_per_img": 2}
        >>> detector = nd.keypointrcnn_cpresnet50_fpn(weights=None, num_keypoints=2, **options).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'keypoints', 'keypoints_scores', 'labels', 'scores']
    """
    return make_detector(
        "keypointrcnn_cpresnet50_fpn",
        weights=weights,
        weights_backbone=weights_backbone,
        num_classes=num_classes,
        trainable_backbone_layers=trainable_backbone_layers,
        progress=progress,
        **kwargs,
    )[0]


@torchvision_builder
def fasterrcnn_cpresnet50_fpn_v2(
    *,
    weights: FasterRCNN_ResNet50_FPN_V2_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Faster R-CNN with FPN, second version, on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As torchvision's ``fasterrcnn_resnet50_fpn_v2``: batch norms in FPN and heads, two convolutions in the RPN, four and
    a linear layer in the box head.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> options = {"min_size": 64, "rpn_post_nms_top_n_test": 10}
        >>> detector = nd.fasterrcnn_cpresnet50_fpn_v2(weights=None, num_classes=3, **options).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    return make_detector(
        "fasterrcnn_cpresnet50_fpn_v2",
        weights=weights,
        weights_backbone=weights_backbone,
        num_classes=num_classes,
        trainable_backbone_layers=trainable_backbone_layers,
        progress=progress,
        **kwargs,
    )[0]


@torchvision_builder
def maskrcnn_cpresnet50_fpn_v2(
    *,
    weights: MaskRCNN_ResNet50_FPN_V2_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Mask R-CNN with FPN, second version, on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As torchvision's ``maskrcnn_resnet50_fpn_v2``: batch norms in FPN and heads, two convolutions in the RPN, four and
    a linear layer in the box head.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> options = {"min_size": 64, "rpn_post_nms_top_n_test": 10}
        >>> detector = nd.maskrcnn_cpresnet50_fpn_v2(weights=None, num_classes=3, **options).eval()
        >>> sorted(detector([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    return make_detector(
        "maskrcnn_cpresnet50_fpn_v2",
        weights=weights,
        weights_backbone=weights_backbone,
        num_classes=num_classes,
        trainable_backbone_layers=trainable_backbone_layers,
        progress=progress,
        **kwargs,
    )[0]
