"""Reading a detector from a file, whatever it was compressed with."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.checkpoint import load
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.runtime.device import check_device
from norton_det.spec import Spec


def read_detector(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    min_size: int | None = None,
    max_size: int | None = None,
) -> tuple[nn.Module, Spec]:
    """Rebuild a detector from a training checkpoint or a file of ``norton_det.save``.

    Args:
        path: the file.
        device: where the detector is put.
        min_size: length in pixels to which an image's shorter side is scaled; None: as trained.
        max_size: bound on the longer side; None: as trained.

    Returns:
        The detector in evaluation mode, and its spec.

    Raises:
        DataError: the file is missing or damaged.
        UsageError: it holds no detector, or there is no such device.
    """
    check_device(device)
    model: Any
    model, spec = load(path, device)
    if ARCHITECTURES[spec.arch].task.name != Detection.name:
        raise UsageError(f"{path}: is a {spec.arch}; expected a detector")
    set_image_size(model, min_size, max_size)
    return model, spec


def set_image_size(detector: Any, min_size: int | None, max_size: int | None) -> None:
    """Set to which size a detector of torchvision scales images, in place; None: as it was.

    Args:
        detector: the detector.
        min_size: length in pixels of the shorter side.
        max_size: limit of the longer side.
    """
    if min_size is not None:
        detector.transform.min_size = (min_size,)
    if max_size is not None:
        detector.transform.max_size = max_size
