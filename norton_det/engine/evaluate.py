"""Running detectors: over a data set, or on one image."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.engine.distributed import gather
from norton_det.engine.progress import ProgressLog
from norton_det.engine.results import CROPS, MASK_THRESHOLD, Result, full_masks, has_masks, masks_as_crops, to_results


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
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    device: torch.device,
    *,
    print_freq: int = 100,
) -> list[Result]:
    """Run a detector over images and return COCO results, those of all processes in the order of the images' ids.

    Args:
        model: maps a list of images (3, H, W) to a list of predictions; it is left in evaluation mode.
        batches: lists of images and of targets, of which only ``image_id`` is looked at; each process has its part.
        device: where the model is.
        print_freq: iterations between log lines.
    """
    model.eval()
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
