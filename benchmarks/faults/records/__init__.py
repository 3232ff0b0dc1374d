"""Mutated COCO records, annotation files, results and images: are they read right, or refused by name?"""

import re
import resource
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any
from warnings import filterwarnings

import torch

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.records import file_faults, ways
from benchmarks.faults.records.apart import run_apart
from benchmarks.faults.records.data import Case, Sound, untouched
from benchmarks.faults.records.harmless import CONTROLS, write
from benchmarks.faults.records.record_faults import RECORDS, RESULTS
from norton_det.errors import DataError
from norton_det.files import read_json

_RECORD = re.compile(r"annotation|image|categor|result|\bid\b|ids|lacks|holds|cannot be read|no such file|\.png|score")
_MOST_LETTERS = 5000
_SECONDS = 300  # a training takes 10, unless the machine has much else to do
_OF_RESULTS = (ways.results, ways.compare)
_OF_CLASSES = (ways.detect, ways.train_command)  # the classes must be those of a detector
_KINDS = ("control", "records", "records", "records", "records", "file", "images")
_KINDS_APART = ("control", "records", "records", "file", "images", "images", "images")
_MEMORY = 12 * 2**30


def prepare(folder: Path) -> Sound:
    """Make the sound data."""
    torch.set_num_threads(1)
    filterwarnings("ignore", "This DataLoader will create")  # more processes than there are processors
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))  # what fills the memory fails here, not elsewhere
    return Sound(folder)


def run(sound: Sound, index: int, random: Random, folder: Path) -> Outcome:
    """Change a copy of the data, use it in one way, and judge what comes out."""
    way = ways.WAYS[index % len(ways.WAYS)]
    split = "val" if way in (*_OF_RESULTS, ways.detect, ways.visualize) else random.choice(["train", "train", "val"])
    points = way not in (ways.detect, ways.visualize) and random.random() < 0.4
    case = Case(sound.copy(folder), points, split, random)
    ways.seeded(random)
    kind, names = _changed(case, sound, random, way)

    def judged() -> Outcome:
        return _outcome(case, sound, way, kind, names)

    if way in (ways.detect, ways.visualize):
        _ = sound.detector  # made once, in the process of all cases
    return run_apart(judged, folder, ways.STREAMS, _SECONDS) if way in ways.APART else judged()


def _outcome(case: Case, sound: Sound, way: ways.Way, kind: str, names: list[str]) -> Outcome:
    """Use the data in one way, and judge what comes out."""
    ended = way(case, sound)
    wrong = ended.wrong or _wrong(case, sound, ended)
    if not wrong and ended.code == 0:
        wrong = _misread(case, sound, ended)
    outcome = "accepted" if ended.code == 0 else "refused"
    note = f"{way.__name__}, {case.split}{', points' if case.points else ''}: {', '.join(names)}: {outcome} {wrong}"
    return Outcome(
        f"{kind}: {way.__name__.replace('_', ' ')}", not wrong, f"{note}\n{ended.errors[-300:] if wrong else ''}"
    )


def _changed(case: Case, sound: Sound, random: Random, way: ways.Way) -> tuple[str, list[str]]:
    """Change the data; return the kind of change, and what is done."""
    content, of_results = sound.content(case.split, points=case.points), way in _OF_RESULTS
    kind = random.choice(_KINDS if way not in ways.APART else _KINDS_APART)
    if of_results and kind in ("file", "images", "records") and random.random() < 0.6:
        return _change_results(case, random)
    count = random.choice([1, 1, 2, 3])
    if kind == "control":
        case.control = True
        return kind, [_control(case, content, random, way)]
    if kind == "images" and not of_results:
        files = sorted(case.images.iterdir())
        names = [_change_image(case, path, random) for path in random.sample(files, min(count, 2))]
        return kind, names
    names = []
    for _ in range(count if kind != "file" else 0):
        names.append(random.choice([*RECORDS]))
        RECORDS[names[-1]](content, random)
    write(case.annotations, content, random)
    if kind != "records":
        names = [random.choice([*file_faults.JSON_FILES])]
        file_faults.JSON_FILES[names[0]](case.annotations, random)
        return "file", names
    return kind, names


def _control(case: Case, content: dict[str, Any], random: Random, way: ways.Way) -> str:
    if random.random() < 0.3 and way not in _OF_RESULTS:
        path = random.choice(sorted(case.images.iterdir()))
        name = random.choice([*file_faults.SAME_PIXELS])
        file_faults.SAME_PIXELS[name](path, random)
        return name
    wrong = ("ids",) if way in _OF_RESULTS else ("names", "category") if way in _OF_CLASSES else ()
    name = random.choice([name for name in CONTROLS if not any(word in name for word in wrong)])
    case.renamed = CONTROLS[name](content, random)
    write(case.annotations, content, random)
    return name


def _change_image(case: Case, path: Path, random: Random) -> str:
    faults = file_faults.IMAGES | file_faults.OTHER_PIXELS
    name = random.choice([*faults])
    faults[name](path, random)
    case.pixels.add(path.name)
    return f"{path.name}: {name}"


def _change_results(case: Case, random: Random) -> tuple[str, list[str]]:
    """Change the results; return the kind of change, and what is done."""
    content = {"results": read_json(case.results, list, "results")}
    names = [random.choice([*RESULTS]) for _ in range(random.choice([1, 1, 2, 3]))]
    for name in names:
        RESULTS[name](content, random)
    write(case.results, content.get("results"), random)
    if random.random() < 0.2:
        names.append(random.choice([*file_faults.JSON_FILES]))
        file_faults.JSON_FILES[names[-1]](case.results, random)
    return "results", names


def _wrong(case: Case, sound: Sound, ended: ways.Ended) -> str:
    """Return what is wrong with the end of a way; "" if nothing is."""
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    if "Traceback (most recent call last)" in ended.errors:
        return "wrote a traceback"
    if ended.code == 0:
        return "wrote an error" if lines else ""
    if case.control:
        return "refused what is right"
    if ended.code == 2 and "--keypoint-pairs" in ended.errors:
        return ""  # keypoints without partner: an option says how they are meant
    if ended.code == 2 and "number of training images" in ended.errors and "left out of training" in ended.log:
        return ""  # too few images are left for --batch-size, and it is said how many
    if ended.code != 3 or len(lines) != 1:
        return f"exit code {ended.code}, {len(lines)} errors"
    line = lines[0]
    if not any(str(root) in line for root in (case.root, sound.root)) or not _RECORD.search(line):
        return "names no file, or no record"
    return "a long error" if len(line) > _MOST_LETTERS + 2 * len(str(case.root)) else ""


def _misread(case: Case, sound: Sound, ended: ways.Ended) -> str:
    """Return what was read otherwise than from the sound data; "" if nothing was."""
    for found in ended.found:
        split = "train" if found.train else "val"
        rows, pixels = sound.read(split, points=case.points, masks=found.masks)
        content = sound.content(split, points=case.points)
        expected = _expected(case, content, split)
        objects_read = sum(map(len, found.rows.values()))
        if found.train and objects_read < _objects(case, content, split) and "left out of training" not in ended.log:
            return "objects left out in silence"
        for name, positions in expected.items():
            objects = _by_position(content, name, rows[name], positions) if name in rows else []
            if name not in found.rows:
                if objects and not case.points:
                    return f"{name}: not read"
                if name in rows and "left out of training" not in ended.log:
                    return f"{name}: left out in silence"
                continue
            if name not in case.pixels and found.pixels[name] != pixels[name]:
                return f"{name}: other pixels"
            left = iter(found.rows[name])
            if not all(row in left for row in objects):
                return f"{name}: other objects"
    return ""


def _expected(case: Case, content: dict[str, Any], split: str) -> Mapping[str, list[int]]:
    """Return the positions of the objects that must be read of each image."""
    if split != case.split:
        return untouched(content, content, Case(case.root, case.points, split, case.random))
    try:
        changed = read_json(case.annotations, dict, "annotations")
    except DataError:
        return {}
    return untouched(content, changed, case)


def _objects(case: Case, content: dict[str, Any], split: str) -> int:
    """Return the number of objects in the annotations that are read."""
    changed = content if split != case.split else read_json(case.annotations, dict, "annotations")
    return len(changed["annotations"])


def _by_position(content: dict[str, Any], name: str, rows: list[Any], positions: list[int]) -> list[Any]:
    """Return the rows of some of the objects of an image; a crowd and a box without area are in no training."""
    image = next(each["id"] for each in content["images"] if each["file_name"] == name)
    places = [place for place, each in enumerate(content["annotations"]) if each["image_id"] == image]
    row_of = dict(zip(places, rows, strict=True))
    return [row_of[position] for position in positions]


CAMPAIGN = Campaign(
    name="records",
    title="Changed COCO records, annotation files, results and images",
    promise="what was not changed is read bit by bit as before, what is left out is counted, all else is refused in "
    "one line with the file and the record, and exit code 3; harmless changes are accepted.",
    size=3000,
    quick=20,
    seconds=_SECONDS + 10,
    prepare=prepare,
    run=run,
)
