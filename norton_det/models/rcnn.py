"""The R-CNNs of torchvision on a ResNet-50 with FPN: the backbone can be compressed, or the whole detector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum, resnet50
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead

from norton_det.models.architecture import Architecture, register_architecture
from norton_det.models.rcnn_options import ANCHOR_SIZES, ASPECT_RATIOS, options_of
from norton_det.models.rcnn_plan import BODY, WIDTH, rcnn_plan, rcnn_scopes
from norton_det.models.resnet import RESNET50, STAGES, norm_class
from norton_det.models.tasks import Detection


def _rcnn(
    rcnn: Callable[..., nn.Module],
    version: int,
    *,
    num_classes: int,
    norm_layer: str | Callable[..., nn.Module] = "BatchNorm2d",
    anchor_sizes: Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Return the dense detector: torchvision's classes, a norm layer by name, one anchor size list per level."""
    body = resnet50(norm_layer=norm_class(norm_layer))
    # The FPN is made for full stages and narrowed by the plan, like every other reader of a stage.
    widths = [RESNET50.plan.widths[stage] for stage in STAGES]
    levels = {stage: str(i) for i, stage in enumerate(STAGES)}
    backbone = BackboneWithFPN(body, levels, widths, WIDTH, norm_layer=nn.BatchNorm2d if version == 2 else None)
    if anchor_sizes is not None or kwargs.get("rpn_anchor_generator") is None:
        sizes = tuple(tuple(level) for level in anchor_sizes or ANCHOR_SIZES)
        with torch.device("cpu"):  # anchors are constants, also in a network without memory
            kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
    if version == 2:
        kwargs = _heads_of_version_2(rcnn, kwargs["rpn_anchor_generator"]) | kwargs
    return rcnn(backbone, num_classes=num_classes, **kwargs)


def _heads_of_version_2(rcnn: Callable[..., nn.Module], anchors: AnchorGenerator) -> dict[str, nn.Module]:
    per_position = anchors.num_anchors_per_location()[0]
    widths = [WIDTH] * 4
    heads = {
        "rpn_head": RPNHead(WIDTH, per_position, conv_depth=2),
        "box_head": FastRCNNConvFCHead((WIDTH, 7, 7), widths, [1024], norm_layer=nn.BatchNorm2d),
    }
    if rcnn is MaskRCNN:
        heads["mask_head"] = MaskRCNNHeads(WIDTH, widths, 1, norm_layer=nn.BatchNorm2d)
    return heads


def _register(
    name: str,
    rcnn: Callable[..., nn.Module],
    kinds: tuple[str, ...],
    num_classes: int,
    dataset: str,
    weights: type[WeightsEnum],
    version: int = 1,
) -> None:
    builder, plan = partial(_rcnn, rcnn, version), rcnn_plan(kinds, version)
    scopes = rcnn_scopes(plan)
    default = scopes["backbone"]
    register_architecture(
        Architecture(
            name,
            builder,
            plan,
            default.rates,
            num_classes=num_classes,
            image_size=Detection.image_size,
            classifier="roi_heads.box_predictor.cls_score",
            dataset=dataset,
            task=Detection(kinds),
            kept_dense={BODY + layer: reason for layer, reason in RESNET50.kept_dense.items()},
            weights=weights,
            options_of=partial(options_of, builder=builder),
            # As in torchvision: the second version trains its norms, from whatever weights.
            trained_options={"norm_layer": "FrozenBatchNorm2d"} if version == 1 else {},
            scopes=scopes,
            within=default.layers,
        )
    )


_BOXES, _MASKS, _KEYPOINTS = ("bbox",), ("bbox", "segm"), ("bbox", "keypoints")
_register("fasterrcnn_cpresnet50_fpn", FasterRCNN, _BOXES, 91, "coco", FasterRCNN_ResNet50_FPN_Weights)
_register("maskrcnn_cpresnet50_fpn", MaskRCNN, _MASKS, 91, "coco", MaskRCNN_ResNet50_FPN_Weights)
_register("keypointrcnn_cpresnet50_fpn", KeypointRCNN, _KEYPOINTS, 2, "coco_kp", KeypointRCNN_ResNet50_FPN_Weights)
_register("fasterrcnn_cpresnet50_fpn_v2", FasterRCNN, _BOXES, 91, "coco", FasterRCNN_ResNet50_FPN_V2_Weights, 2)
_register("maskrcnn_cpresnet50_fpn_v2", MaskRCNN, _MASKS, 91, "coco", MaskRCNN_ResNet50_FPN_V2_Weights, 2)
