"""How a network is called: the images that it takes, and the outputs that it returns, as named tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.errors import UsageError

DETECTION, MAPS, LOGITS = "detection", "maps", "logits"
"""What a network returns: objects of each image of a list; tensors by name, for a batch; one tensor, for a batch."""


def transform_of(net: nn.Module) -> GeneralizedRCNNTransform | None:
    """Return the part of a detector of torchvision that scales and normalises its images; None: it is no detector."""
    transform = getattr(net, "transform", None)
    return transform if isinstance(transform, GeneralizedRCNNTransform) else None


def heads_with_threshold(net: Any) -> Any:
    """Return the part of a detector that has its ``score_thresh``."""
    return getattr(net, "roi_heads", net)


def outputs_by_name(outputs: Any) -> dict[str, Tensor]:
    """Return the tensors that a network returns, by name: of a detector those of its one image.

    Raises:
        UsageError: the network returns something else.

    Example:
        >>> import torch
        >>> from norton_det.models.detector_calls import outputs_by_name
        >>> list(outputs_by_name(torch.zeros(1, 3))), list(outputs_by_name([{"boxes": torch.zeros(0, 4)}]))
        (['logits'], ['boxes'])
    """
    if isinstance(outputs, Tensor):
        return {LOGITS: outputs}
    if isinstance(outputs, list) and len(outputs) == 1:
        outputs = outputs[0]
    if isinstance(outputs, Mapping) and outputs and all(isinstance(value, Tensor) for value in outputs.values()):
        return dict(outputs)
    expected = "a tensor, tensors by name, or a list of those of each image"
    raise UsageError(f"model returns a {type(outputs).__name__}; expected {expected}")


def kind_of(net: nn.Module, outputs: Any) -> str:
    """Return what a network returns: :data:`DETECTION`, :data:`MAPS` or :data:`LOGITS`."""
    if transform_of(net) is not None:
        return DETECTION
    return LOGITS if isinstance(outputs, Tensor) else MAPS
