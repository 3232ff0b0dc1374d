"""What quantisation changes in the outputs of a network, on images that were not used for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

_MATCHED = 0.5
_THRESHOLD = 0.3


@dataclass(frozen=True)
class OutputError:
    """The change of the outputs.

    Attributes:
        images: number of images.
        relative: root of the mean squared change as a fraction of that of the outputs; of a detector, of the scores.
        same: fraction of the images with the same largest logit, or of the detections above 0.3 in float32 that have a
            counterpart of the same label with an IoU of at least 0.5; None of feature maps.
        iou: mean IoU of those detections; None if it is no detector.
    """

    images: int
    relative: float
    same: float | None = None
    iou: float | None = None


@torch.no_grad()
def output_error(exact: Any, quantized: Any, images: Sequence[Tensor]) -> OutputError:
    """Compare two networks of the same contract (:class:`norton_det.export.onnx_network.OnnxNetwork`).

    Args:
        exact: in float32.
        quantized: in eight bits.
        images: (3, H, W), as the networks take them.
    """
    if exact.contract.is_detector:
        return _of_detections([(exact([image])[0], quantized([image])[0]) for image in images])
    squared, total, same = 0.0, 0.0, []
    for image in images:
        wanted, got = _tensors(exact(image[None])), _tensors(quantized(image[None]))
        squared += sum(float((a - b).square().sum()) for a, b in zip(wanted, got, strict=True))
        total += sum(float(a.square().sum()) for a in wanted)
        same += [bool(wanted[0].argmax() == got[0].argmax())] if wanted[0].ndim == 2 else []
    relative = (squared / total) ** 0.5 if total else 0.0
    return OutputError(len(images), relative, sum(same) / len(same) if same else None)


def _of_detections(pairs: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> OutputError:
    squared, total, count = 0.0, 0.0, 0
    ious: list[float] = []
    for wanted, got in pairs:
        chosen = wanted["scores"] > _THRESHOLD
        boxes, labels, scores = (wanted[name][chosen] for name in ("boxes", "labels", "scores"))
        count += len(scores)
        if not len(scores) or not len(got["scores"]):
            continue
        found, best = torch.where(labels[:, None] == got["labels"], box_iou(boxes, got["boxes"]), 0.0).max(1)
        matched = found >= _MATCHED
        ious += found[matched].tolist()
        squared += float((got["scores"][best] - scores)[matched].square().sum())
        total += float(scores[matched].square().sum())
    relative = (squared / total) ** 0.5 if total else 0.0
    return OutputError(
        len(pairs), relative, len(ious) / count if count else None, sum(ious) / len(ious) if ious else None
    )


def _tensors(outputs: Any) -> list[Tensor]:
    return [*outputs.values()] if isinstance(outputs, Mapping) else [outputs]
