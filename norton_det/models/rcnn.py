"""The three R-CNNs on a ResNet-50 with FPN as architectures: the backbone can be compressed, or the whole detector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum, resnet50
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from norton_det.models.architecture import Architecture, register_architecture
from norton_det.models.rcnn_options import ASPECT_RATIOS, options_of
from norton_det.models.rcnn_plan import BODY, rcnn_plan, rcnn_scopes
from norton_det.models.resnet import RESNET50, STAGES, norm_class
from norton_det.models.tasks import Detection


def _rcnn(
    rcnn: Callable[..., nn.Module],
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
    backbone = BackboneWithFPN(body, {stage: str(i) for i, stage in enumerate(STAGES)}, widths, out_channels=256)
    if anchor_sizes is not None:
        sizes = tuple(tuple(level) for level in anchor_sizes)
        with torch.device("cpu"):  # anchors are constants, also in a network without memory
            kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
    return rcnn(backbone, num_classes=num_classes, **kwargs)


def _register(
    name: str,
    rcnn: Callable[..., nn.Module],
    kinds: tuple[str, ...],
    num_classes: int,
    dataset: str,
    weights: type[WeightsEnum],
) -> None:
    builder, plan = partial(_rcnn, rcnn), rcnn_plan(kinds)
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
            scopes=scopes,
            within=default.layers,
        )
    )


_register("fasterrcnn_cpresnet50_fpn", FasterRCNN, ("bbox",), 91, "coco", FasterRCNN_ResNet50_FPN_Weights)
_register("maskrcnn_cpresnet50_fpn", MaskRCNN, ("bbox", "segm"), 91, "coco", MaskRCNN_ResNet50_FPN_Weights)
_register(
    "keypointrcnn_cpresnet50_fpn",
    KeypointRCNN,
    ("bbox", "keypoints"),
    2,
    "coco_kp",
    KeypointRCNN_ResNet50_FPN_Weights,
)
