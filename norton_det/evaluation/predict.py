"""Predictions of detectors on a data set or on one image."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.data.coco.labels import Labels
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


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: DetectionBatches,
    device: torch.device,
    *,
    labels: Labels | None = None,
    print_freq: int = 100,
) -> list[Result]:
    """Return the COCO results of a detector on the images of all processes, ordered by image id.

    At the beginning of its training a detector may detect nothing above its score threshold. It is then evaluated again
    without the threshold, so that the metrics are informative and other COCO programs can read the results (pycocotools
    cannot load an empty list).

    Args:
        model: maps a list of images (3, H, W) to a list of predictions. It is left in evaluation mode.
        batches: lists of images and of targets, of which only ``image_id`` is used. Each process has its own part. They
            may be iterated over twice.
        device: the device of the model.
        labels: category ids of the model's labels. Objects of classes that the data set does not have are left out; a
            line with their numbers is logged. None: labels are category ids.
        print_freq: number of iterations between log lines.

    Returns:
        A dict for each detected object, as returned by :func:`norton_det.evaluation.coco_results.to_results`; the same
        list in every process.
    """
    model.eval()
    results = _results(model, batches, device, labels, print_freq)
    heads: Any = getattr(model, "roi_heads", None)
    threshold = getattr(heads, "score_thresh", 0.0)
    if results or not threshold > 0:
        return results
    logger.warning("No detections above the score threshold %g; evaluating again without a threshold.", threshold)
    heads.score_thresh = 0.0
    try:
        return _results(model, batches, device, labels, print_freq)
    finally:
        heads.score_thresh = threshold


def _results(
    model: nn.Module, batches: DetectionBatches, device: torch.device, labels: Labels | None, print_freq: int
) -> list[Result]:
    results: list[Result] = []
    others: Counter[int] = Counter()
    with masks_as_crops(model):
        for images, targets in ProgressLog("Test:", print_freq).follow(batches):
            predictions = model([image.to(device) for image in images])
            for image, target, prediction in zip(images, targets, predictions, strict=True):
                results += to_results(target["image_id"], prediction, image.shape[-2:], labels)
                if labels is not None:
                    others.update(label for label in prediction["labels"].tolist() if label not in labels.ids)
    parts = gather((results, others))
    if labels is not None:
        _log_others(sum((part[1] for part in parts), Counter()), labels)
    return sorted((result for part in parts for result in part[0]), key=lambda result: result["image_id"])


def _log_others(counts: Counter[int], labels: Labels) -> None:
    if counts:
        names = ", ".join(f"{labels.classes[label]} {count}" for label, count in counts.most_common(5))
        more = ", ..." if len(counts) > 5 else ""
        logger.info("%d detections of classes that the data does not have: %s%s", counts.total(), names, more)


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, *, threshold: float = 0.5) -> dict[str, Tensor]:
    """Return the detections in one image whose score is above ``threshold``.

    Args:
        model: a detector in evaluation mode.
        image: (3, H, W), float with values from 0 to 1, on the device of the model.
        threshold: minimum score, 0 to 1.

    Returns:
        On the CPU: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,), and if the model
        predicts them ``masks`` (N, H, W) bool, ``keypoints`` (N, K, 3) and ``keypoints_scores`` (N, K).

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> from norton_det.evaluation.predict import detect
        >>> model = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=None, num_classes=3, min_size=64, max_size=64).eval()
        >>> detections = detect(model, torch.rand(3, 64, 64), threshold=0.9)
        >>> list(detections), detections["boxes"].shape[1]
        (['boxes', 'labels', 'scores'], 4)
    """
    with masks_as_crops(model):
        (prediction,) = model([image])
    selected = prediction["scores"] > threshold
    detections = {name: value[selected].cpu() for name, value in prediction.items()}
    if has_masks(detections):
        masks = [mask[0] > MASK_THRESHOLD for mask in full_masks(detections, image.shape[-2:])]
        detections["masks"] = torch.stack(masks) if masks else torch.zeros(0, *image.shape[-2:], dtype=torch.bool)
        detections.pop(CROPS, None)
    return detections
