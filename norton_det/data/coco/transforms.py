"""Augmentation for detection: the presets of torchvision's reference script, on its transforms v2."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from norton_det.data.coco.dataset import Target, drop_degenerate
from norton_det.errors import UsageError

_MEAN = (123.0, 117.0, 104.0)  # of COCO's images, 0 to 255
_FILL = {tv_tensors.Image: [v / 255 for v in _MEAN], "others": 0}
PRESETS = ("hflip", "lsj", "multiscale", "ssd", "ssdlite")


class Augment:
    """Random changes of an image and its target.

    Args:
        preset: hflip; lsj (large-scale jitter), multiscale, ssd, ssdlite, each with a flip as well.
        keypoint_names: of a keypoint data set; those called left and right change places in a flip.
        probability: of the flip.

    Raises:
        UsageError: an unknown preset, or one that does not know keypoints.
    """

    def __init__(self, preset: str = "hflip", keypoint_names: Sequence[str] = (), probability: float = 0.5) -> None:
        if preset not in PRESETS:
            raise UsageError(f"unknown data_augmentation {preset!r}; expected one of: {', '.join(PRESETS)}")
        if keypoint_names and preset != "hflip":
            raise UsageError(f"data_augmentation {preset!r} does not move keypoints; expected 'hflip'")
        self.probability = probability
        self.flipped_order = flipped_order(keypoint_names)
        self.transforms = _transforms(preset)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Change an image (3, H, W) and its target; boxes that are lost go with all that belongs to them."""
        moving = {name: value for name, value in target.items() if name in ("boxes", "masks")}
        if self.transforms:
            picture: Any = tv_tensors.Image(image)
            for transform in self.transforms:
                picture, moving = transform(picture, moving)
            image = picture.as_subclass(Tensor)
            target = drop_degenerate({**target, **moving})
        if torch.rand(()) < self.probability:
            image, target = self._flip(image, target)
        return image, target

    def _flip(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        moved: Target = {name: TF.horizontal_flip(target[name]) for name in ("boxes", "masks") if name in target}
        if "keypoints" in target:
            points = target["keypoints"][:, self.flipped_order].clone()
            points[..., 0] = image.shape[-1] - points[..., 0]
            points[points[..., 2] == 0] = 0  # COCO's convention: an absent keypoint is 0, 0, 0
            moved["keypoints"] = points
        return image.flip(-1), {**target, **moved}


def flipped_order(names: Sequence[str]) -> list[int]:
    """Return for each keypoint the number of the one whose place it takes in a mirror image."""
    swap = {"left": "right", "right": "left"}
    order = []
    for name in names:
        mirrored = "_".join(swap.get(part, part) for part in name.split("_"))
        order.append(list(names).index(mirrored if mirrored in names else name))
    return order


def _transforms(preset: str) -> list[nn.Module]:
    if preset == "lsj":
        crop = v2.RandomCrop((1024, 1024), pad_if_needed=True, fill=_FILL)
        return [v2.ScaleJitter((1024, 1024)), crop, v2.ClampBoundingBoxes()]
    if preset == "multiscale":
        return [v2.RandomShortestSize(list(range(480, 801, 32)), max_size=1333)]
    if preset == "ssd":
        return [v2.RandomPhotometricDistort(), v2.RandomZoomOut(_FILL), v2.RandomIoUCrop(), v2.ClampBoundingBoxes()]
    return [v2.RandomIoUCrop(), v2.ClampBoundingBoxes()] if preset == "ssdlite" else []
