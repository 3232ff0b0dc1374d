"""Predictions of detectors on a data set or on one image."""

import logging
from collections.abc import Iterable, Sequence
from itertools import repeat
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
from norton_det.models.image_shapes import check_shapes, size_of
from norton_det.runtime.distributed import gather
from norton_det.runtime.progress import ProgressLog
from norton_det.runtime.signals import end_if_stopped, stopping

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

    At the beginning of its training a detector may detect nothing above its score threshold. Then the detections below
    it are returned, so that the metrics are informative and other COCO programs can read the results (pycocotools
    cannot load an empty list). For that the threshold is not applied until a first detection is above it.

    Args:
        model: maps a list of images (3, H, W) to a list of predictions. It is left in evaluation mode.
        batches: lists of images and of targets, of which only ``image_id`` is used. Each process has its own part.
        device: the device of the model.
        labels: category ids of the model's labels. Objects of classes that the data set does not have are left out.
            None: labels are category ids.
        print_freq: number of iterations between log lines.

    Returns:
        A dict for each detected object, as returned by :func:`norton_det.evaluation.coco_results.to_results`; the same
        list in every process.
    """
    model.eval()
    heads: Any = getattr(model, "roi_heads", None)
    threshold = getattr(heads, "score_thresh", 0.0)
    nothing_yet = threshold > 0
    results: list[Result] = []
    below: list[Result] = []
    try:
        if nothing_yet:
            heads.score_thresh = 0.0
        for batch in ProgressLog("Test:", print_freq).follow(batches):
            if stopping():
                break
            rows = _detections(model, batch, device, labels)
            if nothing_yet and any(row["score"] > threshold for row in rows):
                nothing_yet, heads.score_thresh, below = False, threshold, []
                rows = _detections(model, batch, device, labels)  # exactly what the detector returns as it is
            (below if nothing_yet else results).extend(rows)
    finally:
        if threshold > 0:
            heads.score_thresh = threshold
    end_if_stopped()
    parts = gather((results, below))
    results = [row for part in parts for row in part[0]]
    if not results and threshold > 0:
        logger.warning("No detections above the score threshold %g; those below it are evaluated.", threshold)
        results = [row for part in parts for row in part[1]]
    return sorted(results, key=lambda row: row["image_id"])


def _detections(model: nn.Module, batch: Any, device: torch.device, labels: Labels | None) -> list[Result]:
    """Return the results of a batch."""
    images, targets = batch
    check_shapes(
        model, ((f"image {target['image_id']}", *size_of(i)) for i, target in zip(images, targets, strict=True))
    )
    with masks_as_crops(model):
        predictions = model([image.to(device) for image in images])
    return [
        row
        for image, target, prediction in zip(images, targets, predictions, strict=True)
        for row in to_results(target["image_id"], prediction, image.shape[-2:], labels)
    ]


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, *, threshold: float = 0.5, name: str = "an image") -> dict[str, Tensor]:
    """Return the detections in one image whose score is above ``threshold``.

    Args:
        model: a detector in evaluation mode.
        image: (3, H, W), float with values from 0 to 1, on the device of the model.
        threshold: minimum score, 0 to 1.
        name: of the image, in messages.

    Returns:
        On the CPU: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,), and if the model
        predicts them ``masks`` (N, H, W) bool, ``keypoints`` (N, K, 3) and ``keypoints_scores`` (N, K).

    Raises:
        DataError: the image is too long and thin for the detector.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> from norton_det.evaluation.predict import detect
        >>> model = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=None, num_classes=3, min_size=64, max_size=64).eval()
        >>> detections = detect(model, torch.rand(3, 64, 64), threshold=0.9)
        >>> list(detections), detections["boxes"].shape[1]
        (['boxes', 'labels', 'scores'], 4)
    """
    (detections,) = detect_each(model, [image], threshold=threshold, names=[name])
    if has_masks(detections):
        masks = [mask[0] > MASK_THRESHOLD for mask in full_masks(detections, image.shape[-2:])]
        detections["masks"] = torch.stack(masks) if masks else torch.zeros(0, *image.shape[-2:], dtype=torch.bool)
        detections.pop(CROPS, None)
    return detections


@torch.inference_mode()
def detect_each(
    model: nn.Module, images: Sequence[Tensor], *, threshold: float = 0.5, names: Iterable[str] = repeat("an image")
) -> list[dict[str, Tensor]]:
    """Return the detections in each of several images, as :func:`detect` does, but for the masks.

    Masks remain ``mask_crops`` (N, 1, M, M), in the size of the mask head: in the size of the images they would fill
    the memory. :func:`norton_det.evaluation.coco_results.to_results` encodes them one by one.

    Args:
        model: a detector in evaluation mode.
        images: (3, H, W) of any sizes, float with values from 0 to 1, on the device of the model.
        threshold: minimum score, 0 to 1.
        names: of the images, in messages.

    Raises:
        DataError: an image is too long and thin for the detector.
    """
    check_shapes(model, ((name, *size_of(image)) for image, name in zip(images, names, strict=False)))
    with masks_as_crops(model):
        predictions = model(list(images))
    return [
        {name: value[prediction["scores"] > threshold].cpu() for name, value in prediction.items()}
        for prediction in predictions
    ]
