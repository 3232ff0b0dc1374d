"""Copy-paste augmentation of a batch.

After G. Ghiasi and others, *Simple copy-paste is a strong data augmentation method for instance segmentation*, 2021, in
their plain form: about half of the objects of another image, without blending.
"""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from norton_det.data.coco.dataset import Target, drop_degenerate
from norton_det.data.coco.sampler import DetectionBatch


def copy_paste(images: list[Tensor], targets: list[Target]) -> DetectionBatch:
    """Paste objects of each image onto the next one of the batch; what they hide is hidden, or gone.

    Args:
        images: (3, H, W), all of one size, as large-scale jitter makes them.
        targets: with ``masks``, and without ``keypoints``, which would not move along.
    """
    pairs = [
        _paste(image, target, images[i - 1], targets[i - 1])
        for i, (image, target) in enumerate(zip(images, targets, strict=True))
    ]
    return [image for image, _ in pairs], [target for _, target in pairs]


def _paste(image: Tensor, target: Target, source: Tensor, objects: Target) -> tuple[Tensor, Target]:
    chosen = torch.rand(len(objects["masks"])).to(image.device) < 0.5
    pasted = objects["masks"][chosen]
    cover = pasted.bool().any(0)
    masks = torch.cat([target["masks"] * ~cover, pasted])
    seen = masks.bool().flatten(1).any(1)
    mixed: Target = {name: torch.cat([target[name], objects[name][chosen]])[seen] for name in ("labels", "iscrowd")}
    masks = masks[seen]
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # the far edge of the last pixel
    moved = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])),
        "masks": tv_tensors.Mask(masks),
        "area": masks.flatten(1).sum(1).float(),
    }
    return torch.where(cover, source, image), drop_degenerate({**target, **mixed, **moved})
