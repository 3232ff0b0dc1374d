"""The check of an exported file: what it returns is compared with what the network returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.errors import UsageError
from norton_det.export.contract import Contract
from norton_det.export.differences import Differences
from norton_det.export.onnx_graph import without_warnings
from norton_det.models.detector_calls import heads_with_threshold
from norton_det.runtime.modes import copied

Run = Callable[[Any], Any]
"""Images, as the network takes them -> outputs, as the network returns them."""
SCALES = ((0.75, 1.0), (1.25, 1.25))
"""Of height and width, for the first image at other sizes."""
_BATCH = 3
_GREYS = (0.5, 0.0, 1.0)


@dataclass(frozen=True)
class Check:
    """What was compared.

    Attributes:
        differences: the largest ones.
        sizes: heights and widths of the images.
        batches: sizes of batches.
        without_detection: the image in which nothing is detected, in words; empty: not a detector.
    """

    differences: Differences
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    without_detection: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {
            "images": self.differences.images,
            "sizes": [list(size) for size in self.sizes],
            "batches": list(self.batches),
            "threshold": self.differences.threshold,
            "detections": self.differences.detections,
            "largest": self.differences.figures(),
            "without_detection": self.without_detection,
        }


def compare(run: Run, net: nn.Module, images: Sequence[Tensor], contract: Contract, threshold: float) -> Check:
    """Run a file and the network on each image (3, H, W), the first one at other sizes, and on a batch.

    Args:
        run: the file.
        net: the network, in evaluation mode.
        images: at least one.
        contract: what the file takes.
        threshold: detections with a score above it are compared.
    """
    differences = Differences(threshold)
    inputs = [*images, *(_scaled(images[0], scale) for scale in SCALES if "height" in contract.dynamic)]
    batches = [[image] for image in inputs]
    if "batch" in contract.dynamic:  # a list may have images of different sizes
        batches.append(inputs[-_BATCH:] if contract.is_detector else [images[0].flip(i) for i in range(_BATCH)])
    with torch.no_grad():
        for batch in batches:
            given: Any = batch if contract.is_detector else torch.stack(batch)
            differences.add(_ran(run, given), net(given))
    sizes = {(image.shape[1], image.shape[2]): None for image in inputs}
    return Check(differences, tuple(sizes), tuple({len(batch): None for batch in batches}))


def _ran(run: Run, images: Any) -> Any:
    """Return what a file returns.

    Raises:
        UsageError: it does not run.
    """
    try:
        with without_warnings():
            return run(images)
    except Exception as error:  # each runtime has errors of its own
        shapes = [tuple(image.shape) for image in images]
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(f"the file does not run on images {shapes}: {type(error).__name__}: {reason}") from error


def image_without_detection(net: nn.Module, size: tuple[int, int]) -> tuple[Tensor, str] | None:
    """Return a uniform image in which a detector finds nothing, and what it is in words; None: it does in all."""
    for grey in _GREYS:
        image = torch.full((3, *size), grey)
        with torch.no_grad():
            (found,) = net([image])
        if not len(found["scores"]):
            return image, f"all pixels are {grey:g}"
    return None


def silenced(net: nn.Module) -> nn.Module:
    """Return a copy of a detector in which no score is above the threshold."""
    silent = copied(net)
    heads_with_threshold(silent).score_thresh = 1.0
    return silent


def silent_problem(run: Run, image: Tensor) -> str | None:
    """Return what is wrong with the detections in an image that has none, in words; None: nothing."""
    (found,) = _ran(run, [image])
    lengths = {name: len(values) for name, values in found.items()}
    return f"an image without any detection gives {lengths}" if any(lengths.values()) else None


def _scaled(image: Tensor, scale: tuple[float, float]) -> Tensor:
    size = [max(1, round(side * factor)) for side, factor in zip(image.shape[1:], scale, strict=True)]
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
