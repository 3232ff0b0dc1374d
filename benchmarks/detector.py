"""Detectors whose amount of work does not depend on the weights and whose parts are timed."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.models.rcnn_counted import PROPOSALS
from norton_det.runtime.timing import Stopwatch

DETECTORS = {"faster": "fasterrcnn_93g.yaml", "mask": "maskrcnn_93g.yaml", "keypoint": "keypointrcnn_96g.yaml"}
"""The R-CNNs of the benchmark and their configs."""
DETECTIONS = 1
"""Number of detections for which masks and keypoints are computed, as in the count of multiply-accumulates."""


def watched(net: Any) -> tuple[nn.Module, dict[str, list[float]]]:
    """Fix the numbers of proposals and detections of an R-CNN in place, and time its parts.

    The code of the network computes proposals and detections, which are then replaced by fixed ones.

    Returns:
        The detector, and for each part the seconds of each run. The parts are "backbone", "FPN", "RPN", "RoI heads"
        and "post-processing" (non-maximum suppression of the detections, and their scaling to the image).
    """
    parts: dict[str, list[float]] = defaultdict(list)

    def watch(owner: Any, method: str, part: str, without: str | None = None, add: bool = False) -> None:
        work: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            watch = Stopwatch()
            with watch:
                result = work(*args, **kwargs)
            seconds = watch.seconds - (parts[without][-1] if without else 0)
            if add:
                parts[part][-1] += seconds
            else:
                parts[part].append(seconds)
            return result

        setattr(owner, method, timed)

    _fix_proposals(net.rpn)
    _fix_detections(net.roi_heads)
    watch(net.backbone.body, "forward", "backbone")
    watch(net.backbone.fpn, "forward", "FPN")
    watch(net.rpn, "forward", "RPN")
    watch(net.roi_heads, "postprocess_detections", "post-processing")
    watch(net.roi_heads, "forward", "RoI heads", without="post-processing")
    watch(net.transform, "postprocess", "post-processing", add=True)
    return net, parts


def _fix_proposals(rpn: Any) -> None:
    filter_proposals = rpn.filter_proposals

    def fixed(proposals: Tensor, objectness: Tensor, image_shapes: Any, *args: Any) -> Any:
        _, scores = filter_proposals(proposals, objectness, image_shapes, *args)
        return [_boxes(PROPOSALS, shape, proposals) for shape in image_shapes], scores

    rpn.filter_proposals = fixed


def _fix_detections(heads: Any) -> None:
    postprocess = heads.postprocess_detections

    def fixed(logits: Tensor, regression: Tensor, proposals: Any, image_shapes: Any) -> Any:
        postprocess(logits, regression, proposals, image_shapes)
        boxes = [_boxes(DETECTIONS, shape, logits) for shape in image_shapes]
        ones = [torch.ones(DETECTIONS, device=logits.device) for _ in image_shapes]
        return boxes, ones, [one.long() for one in ones]

    heads.postprocess_detections = fixed


def _boxes(count: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return boxes (count, 4) of many sizes on the device of ``like``, the same for all images of a shape."""
    generator = torch.Generator().manual_seed(0)
    height, width = shape
    corner, extent = torch.rand(2, count, 2, generator=generator)
    corner, extent = 0.9 * corner, 0.02 + 0.5 * extent.square()
    boxes = torch.cat([corner, (corner + extent).clamp(max=1)], 1) * torch.tensor([width, height, width, height])
    return boxes.to(like.device, torch.float32)
