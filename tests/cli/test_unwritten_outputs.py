"""A place where nothing can be written is one line of error, whatever command writes, with its name."""

import json
import sys
from pathlib import Path

import pytest
from conftest import TINY, Refused, fill, tool

import norton_det as nd
from norton_det.builders import make_detector

COMMANDS = {
    "make_shapes": "--train 1 --val 1 --size 32 --output PLACE",
    "demo": "--device cpu --output PLACE",
    "visualize": "--checkpoint DETECTOR --device cpu --input SHAPES/val2017 --output PLACE",
    "eval_det": "--data-path SHAPES --results RESULTS --output-dir PLACE",
    "train_det": "--data-path SHAPES --device cpu --output-dir PLACE",
    "train_cls": "--weights NET --data-path CLASSES --device cpu --output-dir PLACE",
    "eval_det ": "--data-path SHAPES --results RESULTS --output PLACE.json",
    "compress": "--weights NET --rank 1 --output PLACE.safetensors",
    "export": "NET --output PLACE.onnx",
    "search": "--arch resnet56_cifar --allocate --weights NET --calibrate CLASSES --target-macs 9 --output PLACE.yaml",
    "accuracy": "--arch resnet56_cifar --weights NET --data-path CLASSES --configurations 1 --json PLACE.json",
    "report": "RUN --output PLACE.html",
    "pareto": "--network resnet56 --output PLACE.png",
}


@pytest.fixture(scope="module")
def places(shapes: Path, classes: Path, small_net: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("read")
    nd.save(*make_detector("fasterrcnn_cpresnet50_fpn", num_classes=4, **TINY), folder / "detector.safetensors")
    content = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    a = content["annotations"][0]
    row = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
    (folder / "results.json").write_text(json.dumps([row]))
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text('{"epoch": 0, "lr": 0.1, "train_loss": 2.5, "top1": 61.0}\n')
    files = {"DETECTOR": folder / "detector.safetensors", "RESULTS": folder / "results.json", "RUN": folder / "run"}
    return {"SHAPES": shapes, "CLASSES": classes, "NET": small_net, **files}


@pytest.mark.skipif(sys.platform != "linux", reason="the places are Linux's")
@pytest.mark.parametrize("place", ["/proc/x", "/dev/full/x", "FILE/x", "FILE/x/y", "FOLDER/" + "a" * 300])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_is_named(
    command: str, place: str, places: dict[str, Path], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "file").write_text("x")
    (where,) = fill([place], {"FILE": tmp_path / "file", "FOLDER": tmp_path})
    words = [word.replace("PLACE", where) for word in COMMANDS[command].split()]
    is_folder = COMMANDS[command].endswith("PLACE")
    missing = not (is_folder or Path(where).parent.is_dir())  # of files, the folder must exist
    name = str(Path(where).parent) if missing else "" if "FOLDER" in place else where.split("/x")[0]
    refused(lambda: tool(command.strip()).main(fill(words, places)), 2 if missing else 4, name)
    assert (tmp_path / "file").read_text() == "x"
