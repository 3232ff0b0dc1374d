"""The task of object detection."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.data.coco.labels import Labels
from norton_det.evaluation.coco import CocoEvaluator, Metrics, format_metrics
from norton_det.evaluation.coco_results import Result, write_results
from norton_det.evaluation.predict import predict
from norton_det.files import write_json
from norton_det.models.image_shapes import check_shapes, size_of
from norton_det.runtime.distributed import broadcast_buffers, compute_once
from norton_det.runtime.signals import end_at_once
from norton_det.training.loop import SizedBatches

logger = logging.getLogger(__name__)

Targets = list[dict[str, Any]]
Batch = tuple[list[Tensor], Targets]
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Detection:
    """The task of object detection, a :class:`~norton_det.training.loop.Task`.

    Attributes:
        training: (epoch, first batch) -> the remaining batches of the epoch: lists of images (3, H, W) and of targets.
        evaluation: returns the batches of the evaluation.
        device: the device of the detector.
        evaluator: evaluates results on the images of the evaluation.
        kinds: kinds of results that are evaluated: "bbox", and "segm" or "keypoints". The AP of the last kind selects
            the best epoch.
        folder: folder of the results and metrics; None: they are not written.
        mix: augmentation of a batch on the device, such as copy-paste: (images, targets) -> (images, targets).
        print_freq: number of images between log lines of the evaluation.
        labels: category ids of the detector's labels; None: labels are category ids.
    """

    training: Callable[[int, int], SizedBatches]
    evaluation: Callable[[], SizedBatches]
    device: torch.device
    evaluator: CocoEvaluator
    kinds: tuple[str, ...]
    folder: Path | None = None
    mix: Callable[[list[Tensor], Targets], Batch] | None = None
    print_freq: int = 100
    labels: Labels | None = None

    @property
    def best(self) -> str:
        """The AP that selects the best epoch."""
        return f"{self.kinds[-1]}_AP"

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the detector's losses, with torchvision's names."""
        images = [image.to(self.device, non_blocking=True) for image in batch[0]]
        targets = [_to(target, self.device) for target in batch[1]]
        check_shapes(model, ((f"image {t.get('image_id')}", *size_of(i)) for i, t in zip(images, targets, strict=True)))
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        losses: Mapping[str, Tensor] = model(images, targets)
        return losses

    def describe(self, batch: Batch) -> str:
        """Return the ids of the images of a batch."""
        return f"images {', '.join(str(target.get('image_id')) for target in batch[1])}"

    def measure(self, network: nn.Module) -> Metrics:
        """Evaluate a detector on the images of all processes, and write results and metrics to ``folder``.

        Args:
            network: the detector; it is left in evaluation mode.

        Returns:
            The COCO metrics, in every process.
        """
        broadcast_buffers(network)
        results = predict(network, self.evaluation(), self.device, labels=self.labels, print_freq=self.print_freq)
        return compute_once(lambda: self._metrics(results))

    def _metrics(self, results: list[Result]) -> Metrics:
        with end_at_once():
            metrics = self.evaluator.evaluate(results)
        if self.folder is not None:
            write_results(self.folder, results)
            write_json(self.folder / METRICS_FILE, metrics)
        return metrics

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return the COCO metrics under the names ``bbox_AP``, ``bbox_AP50`` and so on."""
        metrics = self.measure(network)
        logger.info("%s", format_metrics(metrics))
        return {f"{kind}_{name}": value for kind, lines in metrics.items() for name, value in lines.items()}


def _to(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in target.items()
    }


def keep_losses_finite(detector: nn.Module) -> None:
    """Make the losses of an R-CNN of torchvision 0 for a batch in which its heads have no regions.

    In a batch without objects whose proposals are all filtered out, torchvision's mean over no regions is NaN. With
    this change the losses of the heads are 0 and every parameter has a gradient, which the other processes wait for.

    Args:
        detector: a hook is added to its heads. Other models are not changed.
    """
    heads: Any = getattr(detector, "roi_heads", None)
    if isinstance(heads, nn.Module):
        heads.register_forward_hook(_losses_without_regions)


def _losses_without_regions(heads: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    detections, losses = output
    regions = sum(len(boxes) for boxes in inputs[1])
    if not losses or regions or any(len(target["boxes"]) for target in inputs[3]):
        return None  # the output is not changed
    zero = torch.stack([parameter.sum() for parameter in heads.parameters() if parameter.requires_grad]).sum() * 0
    return detections, dict.fromkeys(losses, zero)
