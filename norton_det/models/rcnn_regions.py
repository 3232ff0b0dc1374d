"""Boxes for which the heads of two R-CNNs are compared: those that one of them, the dense one, proposes and finds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norton_det.models.rcnn_outputs import heads_of, pyramid_of
from norton_det.runtime.modes import copied

PROPOSALS = 64
"""Limit of the proposals of an image."""
OBJECTS = 16
"""Limit of the objects of an image for which masks and keypoints are predicted."""
_PROPOSALS, _OBJECTS = 2048, 1024  # limits for all images together, which bound memory and time
_CHUNK = 4  # images at a time


class Regions(NamedTuple):
    """Boxes of images, in pixels of the transformed images; the same number for each image.

    Attributes:
        proposals: N times (K, 4): what the box head reads.
        objects: N times (M, 4): what the mask and keypoint heads read.
    """

    proposals: list[Tensor]
    objects: list[Tensor]

    def of(self, images: slice) -> "Regions":
        """Return the boxes of some of the images."""
        return Regions(self.proposals[images], self.objects[images])


@torch.no_grad()
def regions_of(rcnn: nn.Module, images: Sequence[Tensor], seed: int) -> Regions:
    """Return proposals and detections of an R-CNN, float32 on the CPU, without any label.

    Half of an image's proposals are those with the highest scores, the others are drawn from the rest. The objects are
    the detections with the highest scores, and proposals where there are fewer. Boxes are repeated where an image has
    too few of them.

    Args:
        rcnn: one of torchvision's. It is run in evaluation mode, in single precision.
        images: (3, H, W), 0 to 1.
        seed: of what is drawn.
    """
    net: Any = copied(rcnn).eval().float()
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    limit = max(1, min(PROPOSALS, _PROPOSALS // len(images)))
    limit_objects = max(1, min(OBJECTS, _OBJECTS // len(images)))
    finds = len(heads_of(net)) > 1
    regions = Regions([], [])
    for start in range(0, len(images), _CHUNK):
        pyramid = pyramid_of(net, [image.to(device).float() for image in images[start : start + _CHUNK]])
        proposals, _ = net.rpn(pyramid.images, pyramid.maps)
        sizes = pyramid.images.image_sizes
        proposals = [_or_all(boxes, size) for boxes, size in zip(proposals, sizes, strict=True)]
        detections = _detections(net, pyramid, proposals) if finds else proposals
        for boxes, found in zip(proposals, detections, strict=True):
            regions.proposals.append(_drawn(boxes.cpu(), limit, generator))
            regions.objects.append(_repeated(torch.cat([found, boxes]).cpu(), limit_objects) if finds else boxes[:0])
    return regions


def _detections(net: Any, pyramid: Any, proposals: list[Tensor]) -> list[Tensor]:
    heads, sizes = net.roi_heads, pyramid.images.image_sizes
    pooled = heads.box_roi_pool(pyramid.maps, proposals, sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes: list[Tensor] = heads.postprocess_detections(logits, deltas, proposals, sizes)[0]
    return boxes


def _or_all(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the boxes, or that of the whole image where there is none."""
    return boxes if len(boxes) else boxes.new_tensor([[0, 0, size[1], size[0]]])


def _drawn(boxes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` boxes of those sorted by score: half of them the first ones, the others drawn from the rest."""
    first = min(count - count // 2, len(boxes))
    rest = first + torch.randperm(len(boxes) - first, generator=generator)
    return _repeated(boxes[torch.cat([torch.arange(first), rest])], count)


def _repeated(boxes: Tensor, count: int) -> Tensor:
    return boxes[torch.arange(count) % len(boxes)]
