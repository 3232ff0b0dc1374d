"""COCO evaluation with pycocotools: from predictions to results files, from results to AP and AR."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.errors import DataError

Result = dict[str, Any]
Metrics = dict[str, dict[str, float | None]]

_BOX_LINES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRICS = {
    "bbox": _BOX_LINES,
    "segm": _BOX_LINES,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}
"""Kinds of results, and the lines of pycocotools' summary for each."""
_FIELD = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_DEFAULT_SIGMA = 0.05


def to_results(image_id: int, prediction: Mapping[str, Tensor]) -> list[Result]:
    """Turn the prediction for one image into COCO results.

    Args:
        image_id: the image's id.
        prediction: ``boxes`` (N, 4) as x1, y1, x2, y2, ``labels`` (N,), ``scores`` (N,), and where there are any
            ``masks`` (N, 1, H, W) of probabilities and ``keypoints`` (N, K, 3).

    Returns:
        One dict an object with ``image_id``, ``category_id``, ``bbox`` as x, y, width, height, ``score``, and
        ``segmentation`` (compressed RLE) and ``keypoints`` (flat) where there are any.
    """
    boxes = prediction["boxes"].detach().cpu().double()
    corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    rows: dict[str, list[Any]] = {
        "category_id": prediction["labels"].tolist(),
        "bbox": torch.cat([corner, size], 1).tolist(),
        "score": prediction["scores"].detach().cpu().double().tolist(),
    }
    if "masks" in prediction:
        rows["segmentation"] = [_encode(mask) for mask in prediction["masks"]]
    if "keypoints" in prediction:
        rows["keypoints"] = prediction["keypoints"].detach().cpu().double().flatten(1).tolist()
    return [
        {"image_id": image_id, **dict(zip(rows, values, strict=True))} for values in zip(*rows.values(), strict=True)
    ]


def _encode(mask: Tensor) -> dict[str, Any]:
    from pycocotools import mask as rle

    binary = (mask[0] > 0.5).to("cpu", torch.uint8).numpy()
    encoded = rle.encode(np.asfortranarray(binary))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def evaluate_results(coco: Any, results: Sequence[Result], kinds: Sequence[str]) -> Metrics:
    """Return pycocotools' figures for results on all images of an annotation file.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations.
        results: in COCO's results format; empty is nothing found.
        kinds: of "bbox", "segm", "keypoints".

    Returns:
        For each kind the lines of pycocotools' summary by name; None where there is no ground truth.

    Raises:
        DataError: a result names an unknown image or lacks the field of a kind.
    """
    unknown = {result["image_id"] for result in results} - coco.imgs.keys()
    if unknown:
        raise DataError(f"results name image {min(unknown)}, which the annotations do not have")
    return {kind: _evaluate(coco, results, kind) for kind in kinds}


def _evaluate(coco: Any, results: Sequence[Result], kind: str) -> dict[str, float | None]:
    from pycocotools.cocoeval import COCOeval

    if lacking := [i for i, result in enumerate(results) if _FIELD[kind] not in result]:
        raise DataError(f"result {lacking[0]} has no {_FIELD[kind]!r}; expected one for {kind}")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, _load_results(coco, results, kind), kind)
        if kind == "keypoints":
            evaluation.params.kpt_oks_sigmas = _sigmas(coco, evaluation.params.kpt_oks_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if v == -1 else float(v) for name, v in zip(METRICS[kind], evaluation.stats, strict=True)}


def _load_results(coco: Any, results: Sequence[Result], kind: str) -> Any:
    # loadRes takes an object's area from its box wherever there is one: it must see one kind alone.
    fields = ("image_id", "category_id", "score", _FIELD[kind])
    rows = [{name: copy.copy(result[name]) for name in fields} for result in results]
    if rows:
        return coco.loadRes(rows)
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _sigmas(coco: Any, persons: Any) -> Any:
    """Return COCO's tolerances for its 17 keypoints of persons, and an even one for any other number."""
    count = max((len(c.get("keypoints", ())) for c in coco.cats.values()), default=0)
    return persons if count == len(persons) else np.full(count, _DEFAULT_SIGMA)


def format_metrics(metrics: Metrics) -> str:
    """Return a table of all figures, a line each."""
    lines = []
    for kind, figures in metrics.items():
        lines.append(f"IoU metric: {kind}")
        for name, value in figures.items():
            lines.append(f" {name:<6} {'no ground truth' if value is None else f'{value:.3f}'}")
    return "\n".join(lines)
