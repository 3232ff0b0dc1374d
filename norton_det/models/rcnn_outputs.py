"""What an R-CNN computes before anything is chosen: small errors stay small in it, unlike in its detections."""

from typing import Any

import torch
from torch import Tensor

_BOXES = 16
"""Proposals of an image for which the heads are run."""


def outputs_before_choice(rcnn: Any, images: list[Tensor], size: int | None = None) -> dict[str, Any]:
    """Return what the parts of an R-CNN compute, each on the outputs of the one before; proposals are boxes of a grid.

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
    boxes = [_grid(height, width).to(maps[0]) for height, width in batch.image_sizes]
    heads = rcnn.roi_heads
    pooled = heads.box_roi_pool(features, boxes, batch.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    outputs["box"] = (logits, deltas, heads.box_coder.decode(deltas, boxes))
    for kind in ("mask", "keypoint"):
        if getattr(heads, f"{kind}_head", None) is not None:
            pool, head, predictor = (getattr(heads, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
            outputs[kind] = predictor(head(pool(features, boxes, batch.image_sizes)))
    return outputs


def _grid(height: int, width: int) -> Tensor:
    """Return boxes (K, 4) of four sizes, spread over an image."""
    fractions = torch.tensor([[i / 4, j / 4, 0.2 + i / 4, 0.25 + j / 4] for i in range(4) for j in range(4)])
    boxes = fractions[:_BOXES] * torch.tensor([width, height, width, height])
    boxes[:, 2:] += torch.arange(4.0).repeat(4)[:_BOXES, None] * min(height, width) / 8
    return boxes.clamp(min=0)
