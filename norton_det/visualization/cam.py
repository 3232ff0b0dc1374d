"""Class activation maps: where in an image a network's features respond, with the package grad-cam."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import UsageError

_POSITIONS = 1024
"""Number of spatial positions of a map of features, at most: the decomposition of more takes too long."""
_SMALLEST = 7
"""Smallest side of a map of features that shows where something is."""
_OPACITY = 0.5


def check_cam() -> None:
    """Check that the package grad-cam is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError:
        raise UsageError("class activation maps need grad-cam: pip install norton-det[cam]") from None


def class_map(net: nn.Module, inputs: Tensor, label: int) -> Tensor:
    """Return Grad-CAM of a classifier: where the image speaks for a class, in the last feature maps that show places.

    Args:
        net: in evaluation mode.
        inputs: the image, (1, 3, H, W), normalised.
        label: the class.

    Returns:
        (H, W), 0 to 1, on the CPU.

    Raises:
        UsageError: the package grad-cam is not installed.
    """
    check_cam()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with torch.enable_grad(), GradCAM(net, [_last_spatial(net, inputs)]) as cam:
        found = cam(inputs.detach().requires_grad_(), [ClassifierOutputTarget(label)])
    net.zero_grad()
    return torch.from_numpy(found[0])


def pyramid_map(detector: Any, image: Tensor) -> Tensor:
    """Return Eigen-CAM of a detector with a feature pyramid: what stands out in its features, the mean of all levels.

    The map of a level is the first principal component of its features, where it is positive. It needs no gradients,
    which detectors have for chosen boxes only.

    Args:
        detector: an R-CNN of torchvision in evaluation mode.
        image: (3, H, W), float with values from 0 to 1, on the device of the detector.

    Returns:
        (H, W), 0 to 1, on the CPU.

    Raises:
        UsageError: the package grad-cam is not installed.
    """
    check_cam()
    from pytorch_grad_cam.base_cam import BaseCAM
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction

    class EigenCAM(BaseCAM):
        def get_cam_image(self, inputs: Any, layer: Any, targets: Any, activations: Any, *_: Any) -> Any:
            return get_2d_projection_with_sign_correction(activations)

    with torch.no_grad():
        batch, _ = detector.transform([image])
        levels = list(detector.backbone.fpn.layer_blocks)
        shrink = _shrinking(batch.image_sizes[0], batch.tensors.shape[-2:])
        with EigenCAM(detector.backbone, levels, shrink, uses_gradients=False) as cam:
            found = torch.from_numpy(cam(batch.tensors, []))
    return F.interpolate(found[None], image.shape[-2:], mode="bilinear")[0, 0]


def with_map(image: Tensor, where: Tensor) -> Tensor:
    """Return an image (3, H, W), uint8, under the colours of a map (H, W), 0 to 1: from blue to red."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["turbo"](where.numpy())[..., :3]).movedim(-1, 0)
    mixed = (1 - _OPACITY) * TF.to_dtype(image.cpu(), torch.float32, scale=True) + _OPACITY * colours
    painted: Tensor = TF.to_dtype(mixed.clamp(0, 1), torch.uint8, scale=True)
    return painted


def _shrinking(size: tuple[int, int], padded: Any) -> Callable[[Tensor], Tensor]:
    """Return what takes the padding off features (1, C, H, W), and makes them small enough."""

    def shrink(features: Tensor) -> Tensor:
        h, w = (max(1, round(n * a / b)) for n, a, b in zip(features.shape[-2:], size, padded, strict=True))
        ratio = min(1, (_POSITIONS / (h * w)) ** 0.5)
        return F.adaptive_avg_pool2d(features[..., :h, :w], (max(1, int(h * ratio)), max(1, int(w * ratio))))

    return shrink


def _last_spatial(net: nn.Module, inputs: Tensor) -> nn.Module:
    """Return the module that computes the last feature maps with sides of at least ``_SMALLEST``, or the largest."""
    seen: list[tuple[bool, nn.Module]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if module is not net and isinstance(output, Tensor) and output.ndim == 4:
            seen.append((min(output.shape[-2:]) >= _SMALLEST, module))

    handles = [module.register_forward_hook(note) for module in net.modules()]
    try:
        with torch.no_grad():
            net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return next((module for large, module in reversed(seen) if large), seen[0][1])
