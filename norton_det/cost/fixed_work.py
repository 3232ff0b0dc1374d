"""Detectors whose work does not depend on their weights, as it is counted and timed."""

from typing import Any

import torch
from torch import Tensor

from norton_det.models.rcnn_counted import PROPOSALS

DETECTIONS = 1
"""Objects for which masks and keypoints are computed, as in the count of multiply-accumulates."""

PARTS = {
    "backbone": ("backbone.body",),
    "FPN": ("backbone.fpn",),
    "RPN": ("rpn",),
    **{
        f"{name} head": tuple(f"roi_heads.{name}_{part}" for part in ("roi_pool", "head", "predictor"))
        for name in ("box", "mask", "keypoint")
    },
}
"""The parts of an R-CNN by the names of their modules. What is in none of them resizes images and chooses boxes."""


def fix_work(net: Any, proposals: int = PROPOSALS) -> None:
    """Fix the number of proposals and of detections of an R-CNN, in place.

    The network's own code finds proposals and detections, which are then exchanged for ``proposals`` and
    :data:`DETECTIONS` fixed ones. A copy of the network (``copy.deepcopy``, ``norton_det.deploy``) keeps this.

    Args:
        net: one of torchvision's R-CNNs.
        proposals: number of them for each image.

    Example:
        >>> import torch, norton_det as nd
        >>> net = nd.build(nd.Spec("fasterrcnn_cpresnet50_fpn", 2, options={"min_size": 64, "max_size": 64})).eval()
        >>> fix_work(net)
        >>> len(net([torch.rand(3, 64, 64)])[0]["boxes"])
        1
    """
    _fix_proposals(net.rpn, proposals)
    _fix_detections(net.roi_heads)


def _fix_proposals(rpn: Any, count: int) -> None:
    find = rpn.filter_proposals

    def fixed(proposals: Tensor, objectness: Tensor, image_shapes: Any, *args: Any) -> Any:
        _, scores = find(proposals, objectness, image_shapes, *args)
        return [_boxes(count, shape, proposals) for shape in image_shapes], scores

    rpn.filter_proposals = fixed


def _fix_detections(heads: Any) -> None:
    find = heads.postprocess_detections

    def fixed(logits: Tensor, regression: Tensor, proposals: Any, image_shapes: Any) -> Any:
        find(logits, regression, proposals, image_shapes)
        boxes = [_boxes(DETECTIONS, shape, logits) for shape in image_shapes]
        ones = [torch.ones(DETECTIONS, device=logits.device) for _ in image_shapes]
        return boxes, ones, [one.long() for one in ones]

    heads.postprocess_detections = fixed


def _boxes(count: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return boxes (count, 4) of many sizes, the same ones for each image of a shape, with the device of ``like``."""
    generator = torch.Generator().manual_seed(0)
    height, width = shape
    corner, extent = torch.rand(2, count, 2, generator=generator)
    corner, extent = 0.9 * corner, 0.02 + 0.5 * extent.square()
    boxes = torch.cat([corner, (corner + extent).clamp(max=1)], 1) * torch.tensor([width, height, width, height])
    return boxes.to(like.device, torch.float32)
