"""Copy-paste augmentation of a batch.

G. Ghiasi and others, *Simple copy-paste is a strong data augmentation method for instance segmentation*, 2021. Half of
the objects of another image are pasted on average, without blending.
"""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from norton_det.data.coco.dataset import Target, drop_degenerate
from norton_det.data.coco.sampler import DetectionBatch


def copy_paste(images: list[Tensor], targets: list[Target]) -> DetectionBatch:
    """Paste random objects of each image of a batch onto the next image.

    Pixels below pasted objects are removed from the masks of other objects, and objects without pixels are removed.

    Args:
        images: images (3, H, W) of equal size, as large-scale jitter makes them.
        targets: their targets, with ``masks`` and without ``keypoints``, which are not supported.

    Returns:
        New images and targets; the arguments are not changed.
    """
    pairs = [
        _paste(image, target, images[i - 1], targets[i - 1])
        for i, (image, target) in enumerate(zip(images, targets, strict=True))
    ]
    return [image for image, _ in pairs], [target for _, target in pairs]


def _paste(image: Tensor, target: Target, source: Tensor, objects: Target) -> tuple[Tensor, Target]:
    selected = torch.rand(len(objects["masks"])).to(image.device) < 0.5
    pasted = objects["masks"][selected]
    cover = pasted.bool().any(0)
    masks = torch.cat([target["masks"] * ~cover, pasted])
    visible = masks.bool().flatten(1).any(1)
    labels: Target = {
        name: torch.cat([target[name], objects[name][selected]])[visible] for name in ("labels", "iscrowd")
    }
    masks = masks[visible]
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # from the index of the last pixel to its far edge
    geometry = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])),
        "masks": tv_tensors.Mask(masks),
        "area": masks.flatten(1).sum(1).float(),
    }
    return torch.where(cover, source, image), drop_degenerate({**target, **labels, **geometry})
