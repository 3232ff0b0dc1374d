"""Training on data as people have it: the layout decides nothing but where the files are, and a division is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Refused, tool

from norton_det.evaluation.coco_results import RESULTS_FILE


def words_of(data: list[str], out: Path) -> list[str]:
    options = json.dumps({**TINY, "box_score_thresh": 0.0})
    line = ["--model", "fasterrcnn_cpresnet50_fpn", "--device", "cpu", "-j", "0", "--lr", "1e-4", "--epochs", "1"]
    return [*data, "--output-dir", str(out), *line, "--model-kwargs", options]


def train(data: list[str], out: Path, *more: str) -> int:
    code: int = tool("train_det").main([*words_of(data, out), *more])
    return code


def outcome(folder: Path) -> tuple[Any, ...]:
    return tuple(json.loads((folder / name).read_text()) for name in ("metrics.json", RESULTS_FILE))


@pytest.fixture(scope="module")
def named(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data under names of no layout."""
    folder = tmp_path_factory.mktemp("named")
    for split, name in (("train", "monday"), ("val", "tuesday")):
        shutil.copytree(shapes / f"{split}2017", folder / f"{name} pictures")
        shutil.copy(shapes / "annotations" / f"instances_{split}2017.json", folder / f"{name}.json")
    return folder


def files(folder: Path, split: str, name: str) -> list[str]:
    return [
        f"--{split}-images",
        str(folder / f"{name} pictures"),
        f"--{split}-annotations",
        str(folder / f"{name}.json"),
    ]


def roboflow(shapes: Path, folder: Path) -> Path:
    """Lay the data as Roboflow does, with the category that groups the others."""
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(shapes / f"{split}2017", folder / name)
        content = json.loads((shapes / "annotations" / f"instances_{split}2017.json").read_text())
        group = {"id": 0, "name": "shape", "supercategory": "none"}
        content["categories"] = [group, *content["categories"]]
        (folder / name / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_the_layout_changes_nothing(
    shapes: Path, named: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Roboflow's folder, and files of any names, give what COCO's folder gives."""
    assert train(["--data-path", str(shapes)], tmp_path / "coco") == 0
    ways = {
        "roboflow": ["--data-path", str(roboflow(shapes, tmp_path / "data"))],
        "files": [*files(named, "train", "monday"), *files(named, "val", "tuesday")],
    }
    for way, words in ways.items():
        assert train(words, tmp_path / way) == 0
        assert outcome(tmp_path / way) == outcome(tmp_path / "coco")
    assert f"{tmp_path / 'data'}: Roboflow layout: " in caplog.text
    assert "category 'shape' (id 0) is the group of all others and has no objects: it is no class" in caplog.text


@pytest.mark.slow
def test_a_division_is_kept(named: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, refused: Refused) -> None:
    """It is stated, a run is not resumed with another one, and an evaluation sees the images that were held out."""
    shutil.copytree(named / "monday pictures", tmp_path / "cvat" / "images" / "default")
    (tmp_path / "cvat" / "annotations").mkdir()
    shutil.copy(named / "monday.json", tmp_path / "cvat" / "annotations" / "instances_default.json")
    images = tmp_path / "cvat" / "images" / "default"
    data, out = ["--data-path", str(tmp_path / "cvat")], tmp_path / "out"
    refused(lambda: train(data, out), 3, "is not divided and there is no validation set; expected --val-fraction")
    data += ["--val-fraction", "0.3"]
    assert train(data, out) == 0
    assert "2 of 6 images are held out for validation (fraction 0.3, seed 0)" in caplog.text
    words = ["--checkpoint", str(out / "last.safetensors"), "--device", "cpu", "-j", "0", "--output-dir"]
    assert tool("eval_det").main([*data, *words, str(tmp_path / "eval")]) == 0
    assert outcome(tmp_path / "eval") == outcome(out)
    assert len({result["image_id"] for result in outcome(out)[1]}) == 2
    test = ["--val-images", str(images), "--val-annotations", str(named / "monday.json")]
    weights = ["--weights", str(out / "last.safetensors"), "--test-only"]
    assert train(test, tmp_path / "test", *weights) == 0, "no training data is needed"
    resumed = ["--resume", str(out / "checkpoint.pth"), "--epochs", "2"]
    for more, message in (
        (["--split-seed", "1"], "--split-seed is 1; the run that is resumed has 0"),
        (["--val-fraction", "0.5"], "--val-fraction is 0.5; the run that is resumed has 0.3"),
    ):
        refused(lambda more=more: train(data, tmp_path / "no", *resumed, *more), 2, message, unwritten=tmp_path / "no")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train-images DIR", "--train-images DIR: expected --train-annotations as well"),
        ("--val-annotations F", "--val-annotations F: expected --val-images as well"),
        ("--train-images D --train-annotations F", "--train-images without a validation set; expected --val-images or"),
        ("--val-images D --val-annotations F --val-fraction 0.1", "--val-fraction 0.1 with --val-images: expected one"),
        ("--train-images D --train-annotations F --val-fraction 2", "--val-fraction is 2; expected a number above 0"),
        ("--val-fraction 0.1", "has a validation set, "),
    ],
)
def test_what_is_said_by_halves_or_twice_is_refused(
    words: str, message: str, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    code = 3 if words == "--val-fraction 0.1" else 2
    refused(lambda: train(["--data-path", str(shapes)], out, *words.split()), code, message, unwritten=out)
