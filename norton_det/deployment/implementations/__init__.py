"""Equal implementations of layers for inference: one file for each kind of layer, found by the layer's type."""

import norton_det.deployment.implementations.decomposed
import norton_det.deployment.implementations.linear
import norton_det.deployment.implementations.roi_align  # noqa: F401  each registers its implementations
from norton_det.deployment.implementations.base import (
    Implementations,
    expand,
    has_implementations,
    implementations_of,
)

__all__ = ["Implementations", "expand", "has_implementations", "implementations_of"]
