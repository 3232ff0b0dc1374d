"""Our COCO metrics against pycocotools' own, on random annotations and results."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.random_coco import SIZE, indexed, random_data, random_object, reference
from norton_det.evaluation.coco import METRICS, CocoEvaluator

Rows = list[dict[str, Any]]
Content = dict[str, Any]
Change = Callable[[Content, Rows, Random], None]


def _as_drawn(content: Content, results: Rows, random: Random) -> None:
    """Leave all as it is: crowds, absent keypoints, a class without objects, equal scores."""


def _renumber(new: Callable[[int], int]) -> Change:
    """Give images and categories other ids."""

    def change(content: Content, results: Rows, random: Random) -> None:
        for each in (*content["images"], *content["categories"]):
            each["id"] = new(each["id"])
        for each in (*content["annotations"], *results):
            each.update(image_id=new(each["image_id"]), category_id=new(each["category_id"]))

    return change


def _many(content: Content, results: Rows, random: Random) -> None:
    """Add more detections in one image than are evaluated."""
    rng = np.random.default_rng(random.randrange(2**31))
    for number in range(130):
        found = {**random_object(rng), "image_id": content["images"][0]["id"], "category_id": 1}
        results.append({**found, "score": number % 50 / 50})


def _polygons(content: Content, results: Rows, random: Random) -> None:
    """Give objects polygons, which may leave the image, and run lengths that are lists."""
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        polygon = [x - 3, y, x + width, y - 7.5, x + width + 11, y + height, x, y + height]
        if not each["iscrowd"]:
            each["segmentation"] = [polygon] if random.random() < 0.7 else [polygon, [1, 1, 9, 1, 9, 9]]
        elif random.random() < 0.5:
            rows = int(max(1, height))
            each["segmentation"] = {"size": [SIZE, SIZE], "counts": [5, rows, SIZE * SIZE - 5 - rows]}


def _equal_scores(content: Content, results: Rows, random: Random) -> None:
    for each in results:
        each["score"] = 0.5


def _extreme_scores(content: Content, results: Rows, random: Random) -> None:
    for each in results:
        each["score"] = random.choice([0, -1.5, 1, 1e300, -1e300, 1e-300, 7])


def _all_crowds(content: Content, results: Rows, random: Random) -> None:
    for each in content["annotations"]:
        each["iscrowd"] = 1


def _no_objects(content: Content, results: Rows, random: Random) -> None:
    """Leave one object alone, of one image."""
    del content["annotations"][1:]


def _the_truth(content: Content, results: Rows, random: Random) -> None:
    """Make the truth the results, in another order."""
    fields = ("image_id", "category_id", "bbox", "segmentation", "keypoints")
    results[:] = [
        {**{name: each[name] for name in fields}, "score": random.random()} for each in content["annotations"]
    ]
    results += [] if results else [{**_row(content), "score": 0.5}]
    random.shuffle(results)


def _row(content: Content) -> dict[str, Any]:
    """Return an object that is not there."""
    return {**random_object(np.random.default_rng(0)), "image_id": content["images"][0]["id"]}


def _thin(content: Content, results: Rows, random: Random) -> None:
    """Give some boxes no width, a size below a pixel, or a place outside the image."""
    for each in (*content["annotations"], *results):
        if random.random() < 0.3:
            x, y, width, height = each["bbox"]
            each["bbox"] = random.choice([[x, y, 0, height], [x, y, 0.01, 0.01], [x - SIZE, y, width, height]])


def _areas(content: Content, results: Rows, random: Random) -> None:
    """Give objects areas at the limits between small, medium and large, which decide in which metrics they count."""
    for each in content["annotations"]:
        each["area"] = random.choice([0, 1, 32**2, 32**2 - 1e-9, 96**2, 96**2 + 1, 1e10, 12])


CHANGES: dict[str, Change] = {
    "as drawn": _as_drawn,
    "gaps in the ids": _renumber(lambda number: 1000 * number + 7),
    "negative ids": _renumber(lambda number: number - 100),
    "ids of 60 bits": _renumber(lambda number: number + 2**60),
    "more detections than are evaluated": _many,
    "polygons": _polygons,
    "equal scores": _equal_scores,
    "extreme scores": _extreme_scores,
    "crowds alone": _all_crowds,
    "one object": _no_objects,
    "the truth as results": _the_truth,
    "thin boxes, and some outside": _thin,
    "areas at the limits": _areas,
}


def run(prepared: None, index: int, random: Random, folder: Path) -> Outcome:
    """Evaluate one kind of results of a random set with both."""
    kind = [*METRICS][index % 3]
    content, results = random_data(random.randrange(2**31))
    if not content["annotations"]:
        content["annotations"] = [{**_row(content), "id": 1, "area": 9.0, "iscrowd": 0, "num_keypoints": 0}]
    name = [*CHANGES][index // 3 % len(CHANGES)]
    CHANGES[name](content, results, random)
    with redirect_stdout(io.StringIO()):
        expected = reference(content, results, kind)
        metrics = CocoEvaluator(indexed(content), [kind]).evaluate(results)[kind]
    ours = [*metrics.values()]
    wrong = [f"{key}: {a}, pycocotools {b}" for (key, a), b in zip(metrics.items(), expected, strict=True) if a != b]
    return Outcome(f"{kind}: {name}", len(ours) == len(expected) and not wrong, "; ".join(wrong))


CAMPAIGN = Campaign(
    name="evaluation",
    title="COCO metrics of random sets against pycocotools",
    promise="every metric of boxes, masks and keypoints is exactly pycocotools' own.",
    size=600,
    quick=39,
    seconds=60,
    prepare=lambda folder: None,
    run=run,
)
