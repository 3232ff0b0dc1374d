"""Running detectors: over a data set, or on one image."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.evaluation.coco_results import (
    CROPS,
    MASK_THRESHOLD,
    Result,
    full_masks,
    has_masks,
    masks_as_crops,
    to_results,
)
from norton_det.runtime.distributed import gather
from norton_det.runtime.progress import ProgressLog

DetectionBatches = Iterable[tuple[list[Tensor], list[dict[str, Any]]]]
logger = logging.getLogger(__name__)


def kinds_of(model: nn.Module) -> list[str]:
    """Return what an R-CNN of torchvision predicts, in COCO's words: bbox, and segm or keypoints."""
    heads: Any = getattr(model, "roi_heads", None)
    kinds = ["bbox"]
    if getattr(heads, "mask_predictor", None) is not None:
        kinds.append("segm")
    if getattr(heads, "keypoint_predictor", None) is not None:
        kinds.append("keypoints")
    return kinds


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: DetectionBatches,
    device: torch.device,
    *,
    print_freq: int = 100,
) -> list[Result]:
    """Run a detector over images and return COCO results, those of all processes in the order of the images' ids.

    A detector whose training has only begun may find nothing at all above its score threshold. It is then run once more
    without it: the figures show what there is, and the results are some that other COCO programs can read (pycocotools
    cannot load an empty list).

    Args:
        model: maps a list of images (3, H, W) to a list of predictions; it is left in evaluation mode.
        batches: lists of images and of targets, of which only ``image_id`` is looked at; each process has its part.
            They may be gone through twice.
        device: where the model is.
        print_freq: iterations between log lines.
    """
    model.eval()
    results = _results(model, batches, device, print_freq)
    heads: Any = getattr(model, "roi_heads", None)
    bound = getattr(heads, "score_thresh", 0.0)
    if results or not bound > 0:
        return results
    logger.warning("nothing was found with a score above %g: what has a lower score is evaluated", bound)
    heads.score_thresh = 0.0
    try:
        return _results(model, batches, device, print_freq)
    finally:
        heads.score_thresh = bound


def _results(model: nn.Module, batches: DetectionBatches, device: torch.device, print_freq: int) -> list[Result]:
    results: list[Result] = []
    with masks_as_crops(model):
        for images, targets in ProgressLog("Test:", print_freq).follow(batches):
            predictions = model([image.to(device) for image in images])
            for image, target, prediction in zip(images, targets, predictions, strict=True):
                results += to_results(target["image_id"], prediction, image.shape[-2:])
    everything = [result for part in gather(results) for result in part]
    return sorted(everything, key=lambda result: result["image_id"])


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, *, threshold: float = 0.5) -> dict[str, Tensor]:
    """Return what a detector finds in one image with a score above ``threshold``.

    Args:
        model: in evaluation mode.
        image: (3, H, W), float between 0 and 1, on the model's device.
        threshold: between 0 and 1.

    Returns:
        On the CPU ``boxes`` (N, 4) as x1, y1, x2, y2, ``labels`` (N,), ``scores`` (N,), and where the model has them
        ``masks`` (N, H, W) bool, ``keypoints`` (N, K, 3) and ``keypoints_scores`` (N, K).
    """
    with masks_as_crops(model):
        (prediction,) = model([image])
    sure = prediction["scores"] > threshold
    found = {name: value[sure].cpu() for name, value in prediction.items()}
    if has_masks(found):
        masks = [mask[0] > MASK_THRESHOLD for mask in full_masks(found, image.shape[-2:])]
        found["masks"] = torch.stack(masks) if masks else torch.zeros(0, *image.shape[-2:], dtype=torch.bool)
        found.pop(CROPS, None)
    return found
