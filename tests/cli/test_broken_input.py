"""A training on broken input ends with exit code 3 and the name of the file, in whatever process the fault is found."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, TINY
from PIL import Image

from norton_det.data import make_shapes

GUARD = 120  # seconds; a training ends within 30, unless the machine has much else to do
IMAGE = "train2017/000000000003.png"
TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
POINTS = "annotations/person_keypoints_train2017.json"


def file(name: str, change: Callable[[Path], object]) -> Callable[[Path], str]:
    """Return a change of a file; it returns the file's path."""

    def apply(root: Path) -> str:
        change(root / name)
        return str(root / name)

    return apply


def content(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    """Return a change of an annotation file."""

    def rewrite(path: Path) -> None:
        annotations = json.loads(path.read_text())
        change(annotations)
        path.write_text(json.dumps(annotations))

    return file(name, rewrite)


def prefix(root: Path) -> str:
    content(TRAIN, lambda c: c["images"][2].update(file_name="images/" + c["images"][2]["file_name"]))(root)
    return str(root / "train2017" / "images" / Path(IMAGE).name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def huge(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


def floats(path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.float32)).save(path, "TIFF")


def without_names(annotations: dict[str, Any]) -> None:
    for category in annotations["categories"]:
        category["keypoints"] = None


RUNS = {"size": [64, 64], "counts": [1.5, 4094.5]}
BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "no_image": (file(IMAGE, lambda path: path.write_text("no image")), "cannot be read as an image"),
    "cut_image": (file(IMAGE, cut), "cannot be read as an image"),
    "huge_image": (file(IMAGE, huge), "exceeds limit"),
    "floats": (file(IMAGE, floats), "floats of 32 bits"),
    "missing_image": (file(IMAGE, Path.unlink), "No such file"),
    "wrong_prefix": (prefix, "No such file"),
    "resized_image": (file(IMAGE, lambda path: Image.new("RGB", (32, 64)).save(path)), "is 32 x 64, annotated as 64 x"),
    "no_image_to_evaluate_on": (file("val2017/000000000002.png", lambda path: path.write_bytes(b"")), "cannot be read"),
    "iscrowd_null": (content(TRAIN, lambda c: c["annotations"][0].update(iscrowd=None)), "iscrowd is None"),
    "iscrowd_text": (content(VAL, lambda c: c["annotations"][0].update(iscrowd="0")), "iscrowd is '0'"),
    "fractions": (content(TRAIN, lambda c: c["annotations"][0].update(segmentation=RUNS)), "damaged counts"),
    "box_of_nan": (content(TRAIN, lambda c: c["annotations"][0].update(bbox=[float("nan")] * 4)), "malformed boxes"),
    "cut_json": (file(TRAIN, cut), "expected COCO annotations"),
    "no_id": (content(VAL, lambda c: c["images"][0].pop("id")), "image at position 0: no id"),
    "keypoints_null": (content(POINTS, without_names), "no category has keypoints"),
}


def train(names: list[str], workers: int, folder: Path) -> dict[str, list[Any]]:
    """Train on each kind of broken input; return the outcomes of broken_training.py, after checking the messages."""
    make_shapes(folder / "sound", train=6, val=3, size=64)
    options = shlex.quote(json.dumps(TINY))
    commands, expected = {}, {}
    for name in names:
        shutil.copytree(folder / "sound", folder / name)
        change, message = BROKEN[name]
        expected[name] = (change(folder / name), message)
        model = "keypoint" if name == "keypoints_null" else "mask"
        dataset = "coco_kp" if model == "keypoint" else "coco"
        line = (
            f"train-det --data-path {folder / name} --model {model}rcnn_resnet50_fpn --dataset {dataset} -j {workers} "
            "--no-plots"
        )
        commands[name] = shlex.split(
            f"{line} --epochs 1 --momentum 0 --device cpu --model-kwargs {options} --output-dir {folder / 'out' / name}"
        )
    (folder / "cases.json").write_text(json.dumps(commands))
    script = [sys.executable, Path(__file__).with_name("broken_training.py"), folder / "cases.json", str(GUARD)]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    shutil.rmtree(folder / "out", ignore_errors=True)  # it is large
    for name, parts in expected.items():
        # Behind it may be a traceback of multiprocessing, whose queues can be closed twice as a process ends.
        errors = [line for line in (folder / f"{name}.log").read_text().splitlines() if line.startswith("error: ")]
        last = errors[-1] if errors else "no error"
        assert last.startswith(f"error: {parts[0]}: "), last
        assert parts[1] in last
    return json.loads(done.stdout)


def assert_ended(outcomes: dict[str, list[Any]], names: list[str]) -> None:
    assert {name: (code, left) for name, (code, _, left) in outcomes.items()} == dict.fromkeys(names, (3, False))


def test_broken_input_ends_a_training(tmp_path: Path) -> None:
    names = ["no_image", "iscrowd_null"]
    assert_ended(train(names, 1, tmp_path), names)


@pytest.mark.slow
def test_no_kind_of_broken_input_makes_a_training_hang(tmp_path: Path) -> None:
    outcomes = train([*BROKEN], 4, tmp_path)
    sys.stdout.write("".join(f"{name}: {seconds:.1f} s\n" for name, (_, seconds, _) in outcomes.items()))
    assert_ended(outcomes, [*BROKEN])
