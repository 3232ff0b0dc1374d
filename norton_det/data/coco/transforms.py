"""Augmentation for detection: the presets of torchvision's reference script, with transforms v2."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from norton_det.data.coco.dataset import Target, drop_degenerate
from norton_det.data.coco.sides import flipped_order
from norton_det.errors import DataError, UsageError, expect_choice

_MEAN = (123.0, 117.0, 104.0)  # mean colour of COCO's images, 0 to 255
_FILL = {tv_tensors.Image: [v / 255 for v in _MEAN], "others": 0}
_THIN, _LONG = 10, 100  # presets may scale or cut images of such sides, or of such a ratio of them, to nothing
PRESETS = ("hflip", "lsj", "multiscale", "ssd", "ssdlite")


class Augment:
    """Random augmentation of an image and its target.

    Args:
        preset: "hflip" (a horizontal flip), or "lsj" (large-scale jitter), "multiscale", "ssd" or "ssdlite", each of
            them with a flip as well.
        keypoint_names: names of the keypoints of a keypoint data set; a flip exchanges left and right ones.
        probability: probability of the flip.
        pairs: names of the left and right keypoints; None: by their names, see
            :func:`norton_det.data.coco.sides.partners`.

    Raises:
        UsageError: an unknown preset, or one that does not support keypoints; a wrong pair, or a keypoint whose partner
            on the other side is missing.

    Example:
        >>> import torch
        >>> from norton_det.data import Augment
        >>> augment = Augment("hflip", probability=1)
        >>> image, target = augment(torch.eye(2).expand(3, 2, 2), {})
        >>> image[0]
        tensor([[0., 1.],
                [1., 0.]])
    """

    def __init__(
        self,
        preset: str = "hflip",
        keypoint_names: Sequence[str] = (),
        probability: float = 0.5,
        *,
        pairs: Iterable[Sequence[str]] | None = None,
    ) -> None:
        expect_choice("data_augmentation", preset, PRESETS)
        if keypoint_names and preset != "hflip":
            raise UsageError(f"data_augmentation {preset!r} does not support keypoints; expected 'hflip'")
        self.probability = probability
        self.flipped_order = flipped_order(keypoint_names, pairs) if probability > 0 else []
        self.preset, self.transforms = preset, _transforms(preset)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Return an augmented image (3, H, W) and its target, without the objects that left the image.

        Raises:
            DataError: the image is too thin for the preset.
        """
        if self.transforms:
            geometry = {name: value for name, value in target.items() if name in ("boxes", "masks")}
            transformed: Any = tv_tensors.Image(image)
            try:
                for transform in self.transforms:
                    transformed, geometry = transform(transformed, geometry)
            except (RuntimeError, ZeroDivisionError):  # of a size of 0, to which it was scaled or cut
                shorter, longer = sorted(transformed.shape[-2:])
                if shorter > _THIN and longer < _LONG * shorter:
                    raise
                raise DataError(
                    f"image {target.get('image_id')}: is {image.shape[-1]} x {image.shape[-2]}, too thin for "
                    f"data_augmentation {self.preset!r}; expected sides above {_THIN} pixels, none of {_LONG} times "
                    "the other"
                ) from None
            image = transformed.as_subclass(Tensor)
            target = drop_degenerate({**target, **geometry})
        if torch.rand(()) < self.probability:
            image, target = self._flip(image, target)
        return image, target

    def _flip(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        flipped: Target = {name: TF.horizontal_flip(target[name]) for name in ("boxes", "masks") if name in target}
        if "keypoints" in target:
            points = target["keypoints"][:, self.flipped_order].clone()
            points[..., 0] = image.shape[-1] - points[..., 0]
            points[points[..., 2] == 0] = 0  # COCO's convention: an absent keypoint is 0, 0, 0
            flipped["keypoints"] = points
        return image.flip(-1), {**target, **flipped}


def _transforms(preset: str) -> list[nn.Module]:
    if preset == "lsj":
        crop = v2.RandomCrop((1024, 1024), pad_if_needed=True, fill=_FILL)
        return [v2.ScaleJitter((1024, 1024)), crop, v2.ClampBoundingBoxes()]
    if preset == "multiscale":
        return [v2.RandomShortestSize(list(range(480, 801, 32)), max_size=1333)]
    if preset == "ssd":
        return [v2.RandomPhotometricDistort(), v2.RandomZoomOut(_FILL), v2.RandomIoUCrop(), v2.ClampBoundingBoxes()]
    return [v2.RandomIoUCrop(), v2.ClampBoundingBoxes()] if preset == "ssdlite" else []
