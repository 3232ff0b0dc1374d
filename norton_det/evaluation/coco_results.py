"""COCO results: from a detector's predictions, and their files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from norton_det.data.coco.checks.results import FIELD
from norton_det.data.coco.labels import Labels
from norton_det.files import read_json, write_json

Result = dict[str, Any]
RESULTS_FILE = "coco_instances_results.json"
"""Name of the results file in a folder of outputs."""
CROPS = "mask_crops"
MASK_THRESHOLD = 0.5
"""Probability above which a pixel belongs to an object, as is usual with torchvision and COCO."""


def write_results(folder: str | Path, results: Sequence[Result]) -> None:
    """Write the results file of a folder, in the format that COCO scripts read.

    Example:
        >>> import tempfile
        >>> from norton_det.evaluation.coco_results import RESULTS_FILE, read_results, write_results
        >>> result = {"image_id": 1, "category_id": 2, "bbox": [0.0, 0.0, 4.0, 3.0], "score": 0.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_results(folder, [result])
        ...     read_results(f"{folder}/{RESULTS_FILE}") == [result]
        True
    """
    write_json(Path(folder) / RESULTS_FILE, list(results))


def read_results(path: str | Path) -> list[Result]:
    """Read a COCO results file of any program; :mod:`norton_det.data.coco.checks.results` checks its content.

    Raises:
        DataError: the file is missing or is no JSON list.
    """
    results: list[Result] = read_json(path, list, "a list of COCO results")
    return results


def kinds_of_results(results: Sequence[Any]) -> tuple[str, ...]:
    """Return the kinds that results have, in COCO's words: those of the first one. The checks expect them of all.

    Example:
        >>> from norton_det.evaluation.coco_results import kinds_of_results
        >>> kinds_of_results([{"image_id": 1, "category_id": 2, "bbox": [0.0, 0.0, 4.0, 3.0], "score": 0.5}])
        ('bbox',)
    """
    first = results[0] if results and isinstance(results[0], dict) else {}
    return tuple(kind for kind, field in FIELD.items() if first.get(field) is not None)


@contextmanager
def masks_as_crops(model: nn.Module) -> Iterator[None]:
    """Within the block, keep the masks that a detector predicts in the size of its mask head.

    torchvision pastes all masks of an image into the full image at once: 100 masks of 12 megapixels need 4.8 GB, twice.
    Within the block a prediction has ``mask_crops`` (N, 1, M, M) instead of ``masks``, and :func:`to_results` pastes
    them one by one.

    Args:
        model: an R-CNN of torchvision. Other models are not changed.
    """
    heads = getattr(model, "roi_heads", None)
    handle = heads.register_forward_hook(_rename_masks) if isinstance(heads, nn.Module) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _rename_masks(heads: nn.Module, inputs: Any, output: tuple[list[dict[str, Tensor]], Any]) -> None:
    for prediction in output[0]:
        if "masks" in prediction:
            prediction[CROPS] = prediction.pop("masks")


def to_results(
    image_id: int, prediction: Mapping[str, Tensor], size: Sequence[int] = (), labels: Labels | None = None
) -> list[Result]:
    """Return the prediction for one image as COCO results.

    Args:
        image_id: id of the image.
        prediction: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,), and optionally
            probabilities ``masks`` (N, 1, H, W) or ``mask_crops`` (N, 1, M, M), and ``keypoints`` (N, K, 3).
        size: height and width of the image in pixels; needed with ``mask_crops``.
        labels: category ids of the labels; objects of other labels are left out. None: labels are category ids.

    Returns:
        A dict for each object with ``image_id``, ``category_id``, ``bbox`` as x, y, width, height in pixels,
        ``score``, and ``segmentation`` (compressed RLE) and flat ``keypoints`` if they are predicted.

    Example:
        >>> import torch
        >>> from norton_det.evaluation.coco_results import to_results
        >>> boxes = torch.tensor([[1.0, 2.0, 4.0, 6.0]])
        >>> to_results(7, {"boxes": boxes, "labels": torch.tensor([3]), "scores": torch.tensor([0.5])})
        [{'image_id': 7, 'category_id': 3, 'bbox': [1.0, 2.0, 3.0, 4.0], 'score': 0.5}]
    """
    if labels is not None:
        prediction = labels.select(prediction)
    boxes = prediction["boxes"].detach().cpu().double()
    corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    rows: dict[str, list[Any]] = {
        "category_id": [labels.ids[n] if labels else n for n in prediction["labels"].tolist()],
        "bbox": torch.cat([corner, extent], 1).tolist(),
        "score": prediction["scores"].detach().cpu().double().tolist(),
    }
    if has_masks(prediction):
        rows["segmentation"] = [_encode(mask) for mask in full_masks(prediction, size)]
    if "keypoints" in prediction:
        rows["keypoints"] = prediction["keypoints"].detach().cpu().double().flatten(1).tolist()
    return [
        {"image_id": image_id, **dict(zip(rows, values, strict=True))} for values in zip(*rows.values(), strict=True)
    ]


def has_masks(prediction: Mapping[str, Tensor]) -> bool:
    """Return whether a prediction has masks, pasted or not."""
    return "masks" in prediction or CROPS in prediction


def full_masks(prediction: Mapping[str, Tensor], size: Sequence[int]) -> Iterator[Tensor]:
    """Yield the masks of a prediction one by one, as probabilities (1, H, W).

    Args:
        prediction: a prediction with ``masks``, with ``mask_crops`` and ``boxes``, or without masks.
        size: height and width of the image in pixels.
    """
    if CROPS in prediction:
        for crop, box in zip(prediction[CROPS].cpu(), prediction["boxes"].cpu(), strict=True):
            yield paste_masks_in_image(crop[None], box[None], tuple(size))[0]
    else:
        yield from prediction.get("masks", ())


def _encode(mask: Tensor) -> dict[str, Any]:
    from pycocotools import mask as rle

    binary = (mask[0] > MASK_THRESHOLD).to("cpu", torch.uint8).numpy()
    encoded = rle.encode(np.asfortranarray(binary))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
