"""From a detector's predictions to COCO results."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

Result = dict[str, Any]
CROPS = "mask_crops"
MASK_THRESHOLD = 0.5
"""Probability above which a pixel belongs to an object, as in torchvision's and COCO's practice."""


@contextmanager
def masks_as_crops(model: nn.Module) -> Iterator[None]:
    """Leave each mask as small as the mask head made it, while this is open.

    torchvision pastes all masks of an image at its full size at once: 100 masks of 12 megapixels are 4.8 GB, twice.
    Here a prediction has ``mask_crops`` (N, 1, M, M) instead of ``masks``, for :func:`to_results` to paste one by one.

    Args:
        model: an R-CNN of torchvision; another model is left as it is.
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


def to_results(image_id: int, prediction: Mapping[str, Tensor], size: Sequence[int] = ()) -> list[Result]:
    """Turn the prediction for one image into COCO results.

    Args:
        image_id: the image's id.
        prediction: ``boxes`` (N, 4) as x1, y1, x2, y2, ``labels`` (N,), ``scores`` (N,), and where there are any
            ``masks`` (N, 1, H, W) of probabilities or ``mask_crops`` (N, 1, M, M), and ``keypoints`` (N, K, 3).
        size: height and width of the image in pixels, for ``mask_crops``.

    Returns:
        One dict an object with ``image_id``, ``category_id``, ``bbox`` as x, y, width, height, ``score``, and
        ``segmentation`` (compressed RLE) and ``keypoints`` (flat) where there are any.
    """
    boxes = prediction["boxes"].detach().cpu().double()
    corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    rows: dict[str, list[Any]] = {
        "category_id": prediction["labels"].tolist(),
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
    """Tell whether a prediction has masks, pasted or not."""
    return "masks" in prediction or CROPS in prediction


def full_masks(prediction: Mapping[str, Tensor], size: Sequence[int]) -> Iterator[Tensor]:
    """Yield the masks (1, H, W) of probabilities of a prediction, one by one; none if it has none.

    Args:
        prediction: with ``masks``, or with ``mask_crops`` and ``boxes``.
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
