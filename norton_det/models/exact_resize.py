"""The size to which a detector scales an image, in graphs: torchvision's own is off by a pixel for some sizes there.

Outside of graphs torchvision computes it in double precision and rounds down. In graphs it uses single precision, so
that an image of 600x800 pixels may become one of 239x319 in place of 240x320. All boxes move with that.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx import operators
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.models.detector_calls import transform_of


class ExactResize(GeneralizedRCNNTransform):
    """torchvision's transform in evaluation mode, with the same size in graphs as outside."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Scale an image (3, H, W)."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._resize_traced(image), target
        height, width = image.shape[-2], image.shape[-1]
        shorter, longer = float(self.min_size[-1]), float(self.max_size)
        scale = min(shorter / float(min(height, width)), longer / float(max(height, width)))
        size = [math.floor(float(height) * scale), math.floor(float(width) * scale)]
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    @torch.jit.unused
    def _resize_traced(self, image: Tensor) -> Tensor:
        sides = operators.shape_as_tensor(image)[-2:].double()
        limits = torch.tensor([self.min_size[-1], self.max_size], dtype=torch.float64)  # a number / a tensor is inexact
        scale = (limits / torch.stack([sides.min(), sides.max()])).min()
        size: Any = [*(sides * scale).long()]  # rounded down
        scaled: Tensor = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        return scaled[0]


def resize_exactly(net: nn.Module) -> bool:
    """Give a detector of torchvision the transform whose sizes are exact in graphs, in place; tell whether it did."""
    transform: Any = transform_of(net)
    if type(transform) is not GeneralizedRCNNTransform or transform.fixed_size is not None:
        return False
    transform.__class__ = ExactResize
    return True
