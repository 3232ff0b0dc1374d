"""The three R-CNNs on a ResNet-50 with FPN, as architectures whose backbone can be compressed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
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
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.errors import UsageError
from norton_det.models.architecture import ARCHITECTURES, Architecture
from norton_det.models.resnet import RESNET50, STAGES

DETECTOR_SIZE = 800
PROPOSALS = 1000
BODY = "backbone.body."
"""Where the ResNet-50 sits in a detector."""
_NORM_LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer for layer in (nn.BatchNorm2d, FrozenBatchNorm2d, nn.SyncBatchNorm)
}
_ANCHOR_SIZES = ((32,), (64,), (128,), (256,), (512,))
_ASPECT_RATIOS = (0.5, 1.0, 2.0)


def _rcnn(
    rcnn: Callable[..., nn.Module],
    *,
    num_classes: int,
    norm_layer: str | Callable[..., nn.Module] = "BatchNorm2d",
    anchor_sizes: Sequence[Sequence[int]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Return the dense detector: torchvision's own classes, a norm layer by name, one anchor size list per level."""
    norm = _norm_class(norm_layer) if isinstance(norm_layer, str) else norm_layer
    body = resnet50(norm_layer=norm)
    # The FPN is made for full stages and narrowed by the plan, like every other reader of a stage.
    widths = [RESNET50.plan.widths[stage] for stage in STAGES]
    backbone = BackboneWithFPN(body, {stage: str(i) for i, stage in enumerate(STAGES)}, widths, out_channels=256)
    if anchor_sizes is not None:
        sizes = tuple(tuple(level) for level in anchor_sizes)
        with torch.device("cpu"):  # anchors are constants, also in a network without memory
            kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, (_ASPECT_RATIOS,) * len(sizes))
    return rcnn(backbone, num_classes=num_classes, **kwargs)


def _norm_class(name: str) -> type[nn.Module]:
    if name not in _NORM_LAYERS:
        raise UsageError(f"unknown norm_layer {name!r}; expected one of: {', '.join(_NORM_LAYERS)}")
    return _NORM_LAYERS[name]


def _plan() -> ChannelPlan:
    body = tuple(layer for layer in RESNET50.plan.layers if layer.name != RESNET50.classifier)
    readers = tuple(Layer(f"backbone.fpn.inner_blocks.{i}.0", (stage,)) for i, stage in enumerate(STAGES))
    inside = ChannelPlan(RESNET50.plan.widths, body).inside(BODY)
    return ChannelPlan(inside.widths, inside.layers + readers)


def options_of(net: nn.Module) -> dict[str, Any]:
    """Return the builder's options that rebuild ``net``: those that differ from the defaults, as JSON values.

    Heads of the user's own making are not among them; a file for such a detector is refused when it is saved.
    """
    options = _all_options(net)
    return {name: value for name, value in options.items() if value != _DEFAULTS.get(name)}


_DEFAULTS: dict[str, Any] = {
    "norm_layer": "BatchNorm2d",
    "min_size": [800],
    "max_size": 1333,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "anchor_sizes": [list(level) for level in _ANCHOR_SIZES],
    "rpn_pre_nms_top_n_train": 2000,
    "rpn_pre_nms_top_n_test": 1000,
    "rpn_post_nms_top_n_train": 2000,
    "rpn_post_nms_top_n_test": 1000,
    "rpn_nms_thresh": 0.7,
    "rpn_score_thresh": 0.0,
    "rpn_batch_size_per_image": 256,
    "rpn_positive_fraction": 0.5,
    "rpn_fg_iou_thresh": 0.7,
    "rpn_bg_iou_thresh": 0.3,
    "box_score_thresh": 0.05,
    "box_nms_thresh": 0.5,
    "box_detections_per_img": 100,
    "box_batch_size_per_image": 512,
    "box_positive_fraction": 0.25,
    "box_fg_iou_thresh": 0.5,
    "box_bg_iou_thresh": 0.5,
    "num_keypoints": 17,
}


def _all_options(net: Any) -> dict[str, Any]:
    transform, rpn, heads = net.transform, net.rpn, net.roi_heads
    ratios = {tuple(map(float, level)) for level in rpn.anchor_generator.aspect_ratios}
    if ratios != {_ASPECT_RATIOS}:
        raise UsageError(f"anchor aspect ratios {sorted(ratios)} cannot be described; expected {_ASPECT_RATIOS}")
    options = {
        "norm_layer": type(net.backbone.body.bn1).__name__,
        "min_size": list(transform.min_size),
        "max_size": transform.max_size,
        "image_mean": list(transform.image_mean),
        "image_std": list(transform.image_std),
        "anchor_sizes": [list(level) for level in rpn.anchor_generator.sizes],
        "rpn_pre_nms_top_n_train": rpn._pre_nms_top_n["training"],
        "rpn_pre_nms_top_n_test": rpn._pre_nms_top_n["testing"],
        "rpn_post_nms_top_n_train": rpn._post_nms_top_n["training"],
        "rpn_post_nms_top_n_test": rpn._post_nms_top_n["testing"],
        "rpn_nms_thresh": rpn.nms_thresh,
        "rpn_score_thresh": rpn.score_thresh,
        "rpn_fg_iou_thresh": rpn.proposal_matcher.high_threshold,
        "rpn_bg_iou_thresh": rpn.proposal_matcher.low_threshold,
        "rpn_batch_size_per_image": rpn.fg_bg_sampler.batch_size_per_image,
        "rpn_positive_fraction": rpn.fg_bg_sampler.positive_fraction,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "box_fg_iou_thresh": heads.proposal_matcher.high_threshold,
        "box_bg_iou_thresh": heads.proposal_matcher.low_threshold,
        "box_batch_size_per_image": heads.fg_bg_sampler.batch_size_per_image,
        "box_positive_fraction": heads.fg_bg_sampler.positive_fraction,
    }
    if heads.keypoint_predictor is not None:
        options["num_keypoints"] = heads.keypoint_predictor.kps_score_lowres.out_channels
    return options


def _register(name: str, rcnn: Callable[..., nn.Module], num_classes: int, weights: type[WeightsEnum]) -> None:
    ARCHITECTURES.register(
        name,
        Architecture(
            partial(_rcnn, rcnn),
            _plan(),
            RESNET50.rate_order,
            num_classes=num_classes,
            image_size=DETECTOR_SIZE,
            classifier="roi_heads.box_predictor.cls_score",
            kept_dense={BODY + layer: reason for layer, reason in RESNET50.kept_dense.items()},
            weights=weights,
            options_of=options_of,
        ),
    )


class RCNNAtFixedProposals(nn.Module):
    """The layers of an R-CNN as they run for one image and a fixed number of proposals, under their own names."""

    def __init__(self, rcnn: Any) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = rcnn.backbone, rcnn.rpn, rcnn.roi_heads
        self.channels = rcnn.backbone.out_channels

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (1, 3, H, W) to a number."""
        features = self.backbone(image)
        outputs = self.rpn.head(list(features.values()))
        pooled = image.new_zeros(PROPOSALS, self.channels, *self.roi_heads.box_roi_pool.output_size)
        boxes = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        # One number that depends on all of it, so that tracing drops nothing.
        return torch.stack([tensor.sum() for part in (*outputs, boxes) for tensor in part]).sum()


class _HeadsOfOneDetection(nn.Module):
    """The mask and keypoint heads as they run for one detected object."""

    def __init__(self, rcnn: Any) -> None:
        super().__init__()
        self.roi_heads = rcnn.roi_heads
        self.channels = rcnn.backbone.out_channels

    def forward(self, image: Tensor) -> Tensor:
        total = image.sum()
        for kind in ("mask", "keypoint"):
            if getattr(self.roi_heads, f"{kind}_head") is not None:
                pool = getattr(self.roi_heads, f"{kind}_roi_pool")
                pooled = image.new_zeros(1, self.channels, *pool.output_size)
                head, predictor = getattr(self.roi_heads, f"{kind}_head"), getattr(self.roi_heads, f"{kind}_predictor")
                total = total + predictor(head(pooled)).sum()
        return total


_register("fasterrcnn_cpresnet50_fpn", FasterRCNN, 91, FasterRCNN_ResNet50_FPN_Weights)
_register("maskrcnn_cpresnet50_fpn", MaskRCNN, 91, MaskRCNN_ResNet50_FPN_Weights)
_register("keypointrcnn_cpresnet50_fpn", KeypointRCNN, 2, KeypointRCNN_ResNet50_FPN_Weights)
