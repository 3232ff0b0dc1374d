"""The parts of an R-CNN that are run to be counted: with a fixed number of proposals, and for one detected object."""

from typing import Any

import torch
from torch import Tensor, nn

PROPOSALS = 1000


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


class HeadsOfOneDetection(nn.Module):
    """The mask and keypoint heads as they run for one detected object."""

    def __init__(self, rcnn: Any) -> None:
        super().__init__()
        self.roi_heads = rcnn.roi_heads
        self.channels = rcnn.backbone.out_channels

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (1, 3, H, W) to a number."""
        total = image.sum()
        for kind in ("mask", "keypoint"):
            if getattr(self.roi_heads, f"{kind}_head") is not None:
                pool = getattr(self.roi_heads, f"{kind}_roi_pool")
                pooled = image.new_zeros(1, self.channels, *pool.output_size)
                head, predictor = getattr(self.roi_heads, f"{kind}_head"), getattr(self.roi_heads, f"{kind}_predictor")
                total = total + predictor(head(pooled)).sum()
        return total
