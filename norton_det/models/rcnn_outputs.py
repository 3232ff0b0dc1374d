"""What an R-CNN computes part by part, with given boxes: unlike its detections, it changes little with small errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from norton_det.models.image_shapes import check_shapes, size_of

_SIZES = (0.05, 0.2, 0.5, 1.0)
"""Of the boxes of each image for which the heads are run, as fractions of its sides: they lie on different levels."""
_HEADS = {
    "box": ("class_logits", "box_deltas"),
    "mask": ("mask_logits",),
    "keypoint": ("keypoint_logits",),
}
"""Heads by the prefix of their modules' names, and what each predicts."""


class Pyramid(NamedTuple):
    """What all parts behind the backbone read.

    Attributes:
        maps: feature maps (N, C, H, W), by level.
        images: the transformed images and their sizes.
    """

    maps: dict[str, Tensor]
    images: ImageList


def is_standard(rcnn: Any) -> bool:
    """Tell whether an R-CNN runs as torchvision's do: its own forward, RPN and RoI heads."""
    own_forward = type(rcnn).forward is GeneralizedRCNN.forward and "forward" not in vars(rcnn)
    return own_forward and type(rcnn.rpn) is RegionProposalNetwork and type(rcnn.roi_heads) is RoIHeads


def pyramid_of(rcnn: Any, images: Tensor | Sequence[Tensor]) -> Pyramid:
    """Run the backbone of an R-CNN on images (3, H, W), 0 to 1."""
    return pyramid_of_batch(rcnn, batch_of(rcnn, images))


def batch_of(rcnn: Any, images: Tensor | Sequence[Tensor]) -> ImageList:
    """Return images (3, H, W), 0 to 1, as an R-CNN transforms them.

    Raises:
        DataError: an image is too long and thin for it.
    """
    images = list(images)
    check_shapes(rcnn, (("an image", *size_of(image)) for image in images))
    batch: ImageList = rcnn.transform(images)[0]
    return batch


def pyramid_of_batch(rcnn: Any, batch: ImageList) -> Pyramid:
    """Run the backbone of an R-CNN on images that are transformed already."""
    maps = rcnn.backbone(batch.tensors)
    return Pyramid({"0": maps} if isinstance(maps, Tensor) else maps, batch)  # a backbone may have one level


def rpn_outputs(rcnn: Any, pyramid: Pyramid) -> dict[str, list[Tensor]]:
    """Return the RPN's logits (N, A, H, W) and box deltas (N, 4 A, H, W), level by level."""
    logits, deltas = rcnn.rpn.head(list(pyramid.maps.values()))
    return {"rpn_logits": logits, "rpn_deltas": deltas}


def heads_of(rcnn: Any) -> list[str]:
    """Return the heads that an R-CNN has: "box", and "mask" or "keypoint"."""
    return [kind for kind in _HEADS if getattr(rcnn.roi_heads, f"{kind}_head", None) is not None]


def head_outputs(rcnn: Any, pyramid: Pyramid, kind: str, boxes: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return what a head predicts for boxes, in the order of the images and of the boxes of each.

    Args:
        rcnn: one of torchvision's.
        pyramid: of N images.
        kind: one of :func:`heads_of`.
        boxes: N times (K, 4), in pixels of the transformed images.
    """
    pool, head, predictor = (getattr(rcnn.roi_heads, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
    like = next(iter(pyramid.maps.values()))
    dtype = torch.promote_types(like.dtype, torch.float32)  # a CPU aligns no boxes in half precision
    maps = {level: values.to(dtype) for level, values in pyramid.maps.items()}
    pooled = pool(maps, [values.to(like.device, dtype) for values in boxes], pyramid.images.image_sizes)
    outputs = predictor(head(pooled.to(like.dtype)))
    return {name: [values] for name, values in zip(_HEADS[kind], outputs if kind == "box" else [outputs], strict=True)}


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
    batch = batch_of(rcnn, images)
    outputs: dict[str, Any] = {"transform": batch.tensors}
    pyramid = pyramid_of_batch(rcnn, batch if size is None else _scaled(batch, size))
    maps = list(pyramid.maps.values())
    outputs["backbone"] = maps
    outputs["rpn"] = rcnn.rpn.head(maps)
    outputs["anchors"] = rcnn.rpn.anchor_generator(pyramid.images, maps)
    boxes = [_boxes(height, width).to(maps[0]) for height, width in pyramid.images.image_sizes]
    for kind in heads_of(rcnn):
        outputs[kind] = [values for part in head_outputs(rcnn, pyramid, kind, boxes).values() for values in part]
    outputs["box"].append(rcnn.roi_heads.box_coder.decode(outputs["box"][1], boxes))
    return outputs


def _scaled(batch: ImageList, size: int) -> ImageList:
    tensors = torch.nn.functional.interpolate(batch.tensors, (size, size))
    return ImageList(tensors, [(size, size)] * len(tensors))


def _boxes(height: int, width: int) -> Tensor:
    """Return boxes (K, 4) in an image, one of each size."""
    sizes, sides = torch.tensor(_SIZES)[:, None], torch.tensor([width, height])
    corners = (1 - sizes) / 3 * sides
    return torch.cat([corners, corners + sizes * sides], 1)
