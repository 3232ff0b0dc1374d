"""Random annotations with random results, and pycocotools' own figures of them."""

import copy
from typing import Any

import numpy as np
from numpy.random import Generator
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = 150  # room for small, medium and large objects
KEYPOINTS = ["a", "left_b", "right_b"]


def indexed(content: dict[str, Any]) -> COCO:
    """Return pycocotools' object of annotations."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def encoded(box: list[float]) -> dict[str, Any]:
    """Return the mask of an ellipse in a box."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    inside = ((x - box[0]) / box[2] * 2 - 1) ** 2 + ((y - box[1]) / box[3] * 2 - 1) ** 2 < 1
    code = rle.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIZE, SIZE], "counts": code["counts"].decode()}


def random_object(rng: Generator, near: list[float] | None = None) -> dict[str, Any]:
    """Return an object of any size; or one that lies where another does, more or less."""
    extent = rng.choice([12, 40, 110]) * rng.uniform(0.8, 1.2, 2) if near is None else np.array(near[2:])
    corner = rng.uniform(0, SIZE - extent) if near is None else np.array(near[:2])
    if near is not None:
        corner = corner + rng.normal(0, 0.06, 2) * extent
    box = [float(v) for v in (*corner, *extent)]
    points = [v for x, y in corner + rng.random((3, 2)) * extent for v in (float(x), float(y), int(rng.integers(0, 3)))]
    return {"category_id": int(rng.integers(1, 4)), "bbox": box, "segmentation": encoded(box), "keypoints": points}


def random_data(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations with crowds, absent keypoints and an empty class, and results with equal scores."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(4)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            found = random_object(rng)
            if rng.random() < 0.2:
                found["keypoints"] = [0] * 9
            visible = sum(v > 0 for v in found["keypoints"][2::3])
            area = float(rle.area(found["segmentation"]))
            number = {"id": len(annotations) + 1, "image_id": image["id"], "area": area, "num_keypoints": visible}
            annotations.append({**found, **number, "iscrowd": int(rng.random() < 0.15)})
            for _ in range(rng.integers(0, 3)):
                again = {**random_object(rng, found["bbox"]), "image_id": image["id"]}
                if rng.random() < 0.7:
                    again["category_id"] = found["category_id"]
                    again["keypoints"] = [float(v) for v in np.array(found["keypoints"]) + rng.normal(0, 1, 9)]
                results.append({**again, "score": round(float(rng.random()), 1)})
        results.append({**random_object(rng), "image_id": image["id"], "score": 0.5})
    categories = [{"id": i, "name": f"class {i}", "keypoints": KEYPOINTS} for i in (1, 2, 3, 4)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def reference(content: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float | None]:
    """Return pycocotools' own figures."""
    truth = indexed(copy.deepcopy(content))
    fields = ("image_id", "category_id", "score", {"segm": "segmentation"}.get(kind, kind))
    evaluation = COCOeval(truth, truth.loadRes([{f: copy.deepcopy(r[f]) for f in fields} for r in results]), kind)
    evaluation.params.kpt_oks_sigmas = np.full(3, 0.05)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [None if v == -1 else float(v) for v in evaluation.stats]
