"""Inference in one call: images in any form, objects with names."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import UsageError
from norton_det.evaluation.predict import detect_each
from norton_det.inference.images import OneImage, Source, is_one, sources
from norton_det.inference.result import Result
from norton_det.models.tasks import as_inputs
from norton_det.runtime.modes import evaluating
from norton_det.storage import is_folder
from norton_det.visualization.legend import Legend


def predict(
    detector: nn.Module,
    images: OneImage | Iterable[OneImage],
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Detect objects in images: a file, a folder, a video, an image of PIL, a tensor, an array, or several of these.

    Args:
        detector: of :func:`norton_det.load_detector`, or any other detector with torchvision's inputs and outputs. The
            images are put on its device. Its mode stays as it is.
        images: a path: an image file, turned upright by its EXIF orientation, a folder of images, or a video. An RGB
            image of PIL. A tensor (3, H, W) or an array (H, W, 3) or (H, W): uint8 with values from 0 to 255, or float
            from 0 to 1. A list, a batch (B, ...) or any other iterable of such images; their sizes may differ.
        threshold: objects with a score above it are returned. The detector has a threshold of its own: torchvision's
            0.05, unless another one was set.
        batch_size: number of images that the detector computes at once.
        class_names: by label, the background first. None: those that the detector has as ``class_names``.

    Returns:
        A :class:`~norton_det.inference.result.Result` for one image; a list of them for a list, folder or batch; and
        for a video, a generator or any other iterable an iterator, which computes what is asked for.

    Raises:
        DataError: a file is missing or cannot be read.
        UsageError: a wrong argument, or something that is no image.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> options = {"min_size": 64, "box_detections_per_img": 2}
        >>> detector = nd.fasterrcnn_cpresnet50_fpn(weights=None, num_classes=3, **options)
        >>> result = nd.predict(detector, torch.rand(3, 64, 80), threshold=0, class_names=["", "cat", "dog"])
        >>> len(result), set(result.names) <= {"cat", "dog"}, result.boxes.shape
        (2, True, torch.Size([2, 4]))
        >>> result.draw("drawn.png").size
        (640, 512)
        >>> results = nd.predict(detector, torch.rand(3, 3, 64, 80), batch_size=2)
        >>> len(results)
        3
    """
    if not isinstance(detector, nn.Module):
        raise UsageError(f"detector is {detector!r}; expected a network, as norton_det.load_detector returns it")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; expected 0 to 1")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; expected at least 1")
    classes = getattr(detector, "class_names", ()) if class_names is None else class_names
    legend = Legend.of_names(classes, getattr(detector, "keypoint_names", ()))
    several = is_folder(images) if isinstance(images, (str, Path)) else hasattr(images, "__len__")
    one = is_one(images)
    results = _results(detector, sources(images), threshold, batch_size, legend)
    return next(results) if one else list(results) if several else results


def _results(
    detector: nn.Module, images: Iterator[Source], threshold: float, batch_size: int, legend: Legend
) -> Iterator[Result]:
    while batch := list(islice(images, batch_size)):
        pixels = [source.pixels() for source in batch]
        inputs = as_inputs([TF.to_dtype(image, torch.float32, scale=True) for image in pixels], detector)
        names = [source.name for source in batch]
        with evaluating(detector):
            found = detect_each(detector, list(inputs), threshold=threshold, names=names)
        for source, image, detections in zip(batch, pixels, found, strict=True):
            yield Result.new(detections, image.shape[-2:], legend, source)
