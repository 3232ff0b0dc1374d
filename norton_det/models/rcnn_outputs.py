"""What an R-CNN computes before anything is chosen: small errors stay small in it, unlike in its detections."""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

_SIZES = (0.05, 0.2, 0.5, 1.0)
"""Of the boxes of each image for which the heads are run, as fractions of its sides: they lie on different levels."""


def is_standard(rcnn: Any) -> bool:
    """Tell whether an R-CNN runs as torchvision's do: its own forward, RPN and RoI heads."""
    own_forward = type(rcnn).forward is GeneralizedRCNN.forward and "forward" not in vars(rcnn)
    return own_forward and type(rcnn.rpn) is RegionProposalNetwork and type(rcnn.roi_heads) is RoIHeads


def outputs_before_choice(rcnn: Any, images: list[Tensor], size: int | None = None) -> dict[str, Any]:
    """Return what the parts of an R-CNN compute, each on the outputs of the one before; the proposals are fixed boxes.

    Args:
        rcnn: one of torchvision's, in evaluation mode.
        images: (3, H, W), 0 to 1.
        size: side in pixels of the square to which the images are scaled after their transformation, which is then
            compared by itself; None: all runs at the size that the detector scales images to.

    Returns:
        Tensors by the name of the part.
    """
    batch, _ = rcnn.transform(images)
    outputs: dict[str, Any] = {"transform": batch.tensors}
    if size is not None:
        batch.tensors = torch.nn.functional.interpolate(batch.tensors, (size, size))
        batch.image_sizes = [(size, size)] * len(images)
    features = rcnn.backbone(batch.tensors)
    features = {"0": features} if isinstance(features, Tensor) else features  # a backbone of one level
    maps = list(features.values())
    outputs["backbone"] = maps
    outputs["rpn"] = rcnn.rpn.head(maps)
    outputs["anchors"] = rcnn.rpn.anchor_generator(batch, maps)
    boxes = [_boxes(height, width).to(maps[0]) for height, width in batch.image_sizes]
    heads = rcnn.roi_heads
    pooled = heads.box_roi_pool(features, boxes, batch.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    outputs["box"] = (logits, deltas, heads.box_coder.decode(deltas, boxes))
    for kind in ("mask", "keypoint"):
        if getattr(heads, f"{kind}_head", None) is not None:
            pool, head, predictor = (getattr(heads, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
            outputs[kind] = predictor(head(pool(features, boxes, batch.image_sizes)))
    return outputs


def _boxes(height: int, width: int) -> Tensor:
    """Return boxes (K, 4) in an image, one of each size."""
    sizes, sides = torch.tensor(_SIZES)[:, None], torch.tensor([width, height])
    corners = (1 - sizes) / 3 * sides
    return torch.cat([corners, corners + sizes * sides], 1)
