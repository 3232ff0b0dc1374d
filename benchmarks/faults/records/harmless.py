"""Changes of records and files that are right, and must be accepted: the controls."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.faults.records import values

Content = dict[str, Any]


class Renamed(NamedTuple):
    """Ids that were given to images and categories, and those that they had."""

    images: dict[Any, Any]
    categories: dict[Any, Any]


Control = Callable[[Content, Random], Renamed]
SAME = Renamed({}, {})


def _unchanged(content: Content, random: Random) -> Renamed:
    return SAME


def _more_fields(content: Content, random: Random) -> Renamed:
    for part in ("images", "annotations", "categories"):
        for each in content[part]:
            each[random.choice(["license", "attributes", "tags", "Größe", "\0"])] = values.junk(random)
    content["licenses"] = values.other(random)
    return SAME


def _reordered(content: Content, random: Random) -> Renamed:
    for part in ("images", "annotations", "categories"):
        random.shuffle(content[part])
    return SAME


def _renamed(new: Callable[[int, Random], Any]) -> Control:
    """Give all images, categories and annotations other ids, in the same order."""

    def control(content: Content, random: Random) -> Renamed:
        found: dict[str, dict[Any, Any]] = {}
        for part in ("images", "categories", "annotations"):
            shift = random.randrange(10)
            ids = {each["id"]: new(each["id"] + shift, random) for each in content[part]}
            for each in content[part]:
                each["id"] = ids[each["id"]]
            found[part] = ids
        for each in content["annotations"]:
            each["image_id"] = found["images"][each["image_id"]]
            each["category_id"] = found["categories"][each["category_id"]]
        images, categories = ({b: a for a, b in found[part].items()} for part in ("images", "categories"))
        return Renamed(images, categories)

    return control


def _unusual_names(content: Content, random: Random) -> Renamed:
    names = random.sample(values.UNUSUAL_NAMES, len(content["categories"]))
    for each, name in zip(content["categories"], names, strict=True):
        each["name"] = name
        for _ in each.get("keypoints", ())[:1]:
            each["keypoints"] = [f"{random.choice(values.UNUSUAL_NAMES)}{i}" for i in range(len(each["keypoints"]))]
    return SAME


def _unused(content: Content, random: Random) -> Renamed:
    """Add a category without objects, and an image without objects that is there twice."""
    content["categories"].append({**content["categories"][0], "id": 10**9, "name": "unused"})
    return SAME


def _without_what_may_be_missing(content: Content, random: Random) -> Renamed:
    for each in content["annotations"]:
        each.pop(random.choice(["iscrowd", "num_keypoints", "id2"]), None)
    for each in content["categories"]:
        each.pop(random.choice(["supercategory", "skeleton"]), None)
    content.pop("info", None)
    return SAME


CONTROLS: dict[str, Control] = {
    "unchanged": _unchanged,
    "more fields": _more_fields,
    "another order": _reordered,
    "gaps in the ids": _renamed(lambda number, random: number * 1000),
    "negative ids": _renamed(lambda number, random: number - 10**6),
    "large ids": _renamed(lambda number, random: 10**9 + number),
    "ids of 63 bits": _renamed(lambda number, random: 2**63 - 1000 + number),
    "texts as ids": _renamed(lambda number, random: f"id {number:03d}"),
    "unusual names": _unusual_names,
    "an unused category": _unused,
    "optional fields are missing": _without_what_may_be_missing,
}


def write(path: Path, content: Any, random: Random) -> None:
    """Write content as JSON in one of the ways in which programs do."""
    text = json.dumps(content, ensure_ascii=random.random() < 0.7, indent=random.choice([None, 1]))
    encoding = random.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16"])
    path.unlink(missing_ok=True)
    path.write_bytes(text.encode(encoding, "surrogatepass"))
