"""The task of detecting objects: what a detector's training and evaluation are made of."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.evaluation.coco import CocoEvaluator, Metrics, format_metrics
from norton_det.evaluation.predict import predict
from norton_det.files import write_json
from norton_det.runtime.distributed import is_main, made_once, share_buffers
from norton_det.training.loop import SizedBatches

logger = logging.getLogger(__name__)

Targets = list[dict[str, Any]]
Batch = tuple[list[Tensor], Targets]
METRICS_FILE, RESULTS_FILE = "metrics.json", "coco_instances_results.json"


def as_they_are(images: list[Tensor], targets: Targets) -> Batch:
    """Change nothing in a batch."""
    return images, targets


@dataclass(frozen=True)
class Detection:
    """The task of detecting objects; see :class:`norton_det.training.loop.Task`.

    Attributes:
        training: (epoch, first batch) -> the rest of the epoch's batches: lists of images (3, H, W) and of targets.
        evaluation: returns the batches to evaluate on.
        device: where the detector is.
        evaluator: of results for the images to evaluate on.
        kinds: what is evaluated: "bbox", and "segm" or "keypoints"; the last one's AP tells which epoch is the best.
        folder: where the results and their figures are written; None: nowhere.
        mix: changes a batch on the device, as copy-paste does.
        print_freq: images between the log lines of an evaluation.
    """

    training: Callable[[int, int], SizedBatches]
    evaluation: Callable[[], SizedBatches]
    device: torch.device
    evaluator: CocoEvaluator
    kinds: tuple[str, ...]
    folder: Path | None = None
    mix: Callable[[list[Tensor], Targets], Batch] = as_they_are
    print_freq: int = 100

    @property
    def best(self) -> str:
        """The AP that tells which epoch is the best."""
        return f"{self.kinds[-1]}_AP"

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the detector's losses by torchvision's names."""
        images, targets = batch
        moved = [image.to(self.device, non_blocking=True) for image in images]
        losses: Mapping[str, Tensor] = model(*self.mix(moved, [_to(target, self.device) for target in targets]))
        return losses

    def describe(self, batch: Batch) -> str:
        """Return the ids of a batch's images."""
        return f"images {', '.join(str(target.get('image_id')) for target in batch[1])}"

    def measure(self, network: nn.Module) -> Metrics:
        """Evaluate a detector on the images of all processes and write the files.

        Args:
            network: it is left in evaluation mode.

        Returns:
            The COCO figures, in every process.
        """
        share_buffers(network)
        results = predict(network, self.evaluation(), self.device, print_freq=self.print_freq)
        metrics = made_once(lambda: self.evaluator.evaluate(results))
        if self.folder is not None and is_main():
            write_json(self.folder / RESULTS_FILE, results)
            write_json(self.folder / METRICS_FILE, metrics)
        return metrics

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return the COCO figures as ``bbox_AP`` and so on."""
        metrics = self.measure(network)
        logger.info("%s", format_metrics(metrics))
        return {f"{kind}_{name}": value for kind, figures in metrics.items() for name, value in figures.items()}


def _to(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in target.items()
    }


def keep_losses_finite(detector: nn.Module) -> None:
    """Let an R-CNN of torchvision that has nothing to classify in a batch lose nothing there.

    Without objects, and with all proposals filtered, the mean over no regions would be NaN. The losses are then 0, with
    a gradient of 0 for every parameter, for which the other processes wait.

    Args:
        detector: a hook is added to its heads.
    """
    heads: Any = getattr(detector, "roi_heads", None)
    if isinstance(heads, nn.Module):
        heads.register_forward_hook(_losses_of_nothing)


def _losses_of_nothing(heads: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    found, losses = output
    regions = sum(len(boxes) for boxes in inputs[1])
    if not losses or regions or any(len(target["boxes"]) for target in inputs[3]):
        return None  # as it is
    nothing = torch.stack([parameter.sum() for parameter in heads.parameters() if parameter.requires_grad]).sum() * 0
    return found, dict.fromkeys(losses, nothing)
