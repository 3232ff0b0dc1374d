"""Faults of records: of the images, annotations and categories of a COCO file, or of results."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from benchmarks.faults.records import values

Content = dict[str, Any]
Fault = Callable[[Content, Random], None]
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints"),
    ),
    "categories": ("id", "name", "keypoints", "skeleton", "supercategory", "keypoint_sigmas"),
    "results": ("image_id", "category_id", "score", "bbox", "segmentation", "keypoints"),
}


def _part(content: Content, random: Random) -> str:
    if "results" in content:
        return "results"
    return random.choice(["images", "annotations", "annotations", "annotations", "categories"])


def _records(content: Content, random: Random) -> tuple[str, list[dict[str, Any]]]:
    """Return a part and its records that are still objects."""
    part = _part(content, random)
    records = content.get(part)
    return part, [each for each in records if isinstance(each, dict)] if isinstance(records, list) else []


def _in_one(change: Callable[[dict[str, Any], str, Random], None]) -> Fault:
    def fault(content: Content, random: Random) -> None:
        part, records = _records(content, random)
        if records:
            change(random.choice(records), random.choice(_FIELDS[part]), random)

    return fault


def _put(make: values.Make) -> Fault:
    def change(record: dict[str, Any], field: str, random: Random) -> None:
        record[field] = make(random)

    return _in_one(change)


def _without(record: dict[str, Any], field: str, random: Random) -> None:
    record.pop(field, None)


def _inside(record: dict[str, Any], field: str, random: Random) -> None:
    """Change an element of a list, or how many there are."""
    value = record.get(field)
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = random.choice(value)
    if not isinstance(value, list) or not value:
        record[field] = values.junk(random)
        return
    index = random.randrange(len(value))
    one, other = [values.number(random)], [values.junk(random)]
    rest = value[index + 1 :]
    value[index:] = random.choice([one + rest, other + rest, rest, value[index:] * 2, []])


def _of(fields: Sequence[str], make: values.Make) -> Fault:
    """Return a fault of a field among these: what is hardly right in it, but of its kind."""

    def fault(content: Content, random: Random) -> None:
        field = random.choice(fields)
        parts = [part for part in content if field in _FIELDS.get(part, ())]
        found = content[random.choice(parts)] if parts else None
        if records := [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []:
            random.choice(records)[field] = make(random)

    return fault


def _swap(content: Content, random: Random) -> None:
    part, records = _records(content, random)
    field = random.choice(_FIELDS[part])
    if len(records) > 1:
        a, b = random.sample(records, 2)
        a[field], b[field] = b.get(field), a.get(field)


def _repeat(content: Content, random: Random) -> None:
    part, records = _records(content, random)
    if records:
        content[part].insert(random.randrange(len(content[part])), {**random.choice(records)})


def _remove(content: Content, random: Random) -> None:
    records = content.get(_part(content, random))
    if isinstance(records, list) and records:
        records.pop(random.randrange(len(records)))


def _no_record(content: Content, random: Random) -> None:
    records = content.get(_part(content, random))
    if isinstance(records, list) and records:
        records[random.randrange(len(records))] = values.junk(random)


def _no_list(content: Content, random: Random) -> None:
    part = _part(content, random)
    if random.random() < 0.3:
        content.pop(part, None)
    else:
        content[part] = values.junk(random)


def _path(random: Random) -> str:
    return random.choice(values.PATHS).format("000000000001.png")


def _crowds(content: Content, random: Random) -> None:
    """Make a crowd of some objects, or of all."""
    annotations = content.get("annotations")
    for each in annotations if isinstance(annotations, list) else ():
        if isinstance(each, dict) and random.random() < random.choice([0.2, 1]):
            each["iscrowd"] = 1


def _far_box(random: Random) -> list[Any]:
    """Return a box of finite numbers: outside the image, without area, negative, huge."""
    x, y = random.choice([-1e6, -100, -1, 0, 10, 63.9, 64, 1e6]), random.choice([-100, 0, 5, 64, 1e5])
    return [x, y, *(random.choice([0, 1e-9, 1e-3, 1, 30, 64, 1e6, -1]) for _ in range(2))]


RECORDS: dict[str, Fault] = {
    "a field is missing": _in_one(_without),
    "a field of another kind": _put(values.junk),
    "a field is an extreme number": _put(values.number),
    "a value in a field": _in_one(_inside),
    "a mask": _of(["segmentation"], values.mask),
    "a name": _of(["file_name", "name"], values.name),
    "a path": _of(["file_name"], _path),
    "an id": _of(["id", "image_id", "category_id"], lambda random: random.choice([values.number, values.name])(random)),
    "a box": _of(["bbox"], _far_box),
    "fields are exchanged": _swap,
    "a record comes twice": _repeat,
    "a record is missing": _remove,
    "a record is none": _no_record,
    "a list is none": _no_list,
    "crowds": _crowds,
}
RESULTS: dict[str, Fault] = {
    name: fault for name, fault in RECORDS.items() if name not in ("a name", "a path", "crowds")
}
