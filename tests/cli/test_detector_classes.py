"""A detector and data sets that number, name or have other classes: the right figures, or an error that lists them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, tool
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.transforms.v2.functional import pil_to_tensor

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.evaluation.coco_results import RESULTS_FILE
from norton_det.evaluation.predict import detect
from norton_det.visualization.draw import draw_detections
from norton_det.visualization.legend import Legend

Change = Callable[[dict[str, Any]], None]
MODEL = "fasterrcnn_cpresnet50_fpn"
CLASSES = ("__background__", "circle", "square", "triangle")
OTHER_IDS = {1: 74_673_216, 2: 44, 3: 0}


def renumbered(content: dict[str, Any]) -> None:
    """Give the categories other ids, in another order."""
    for category in content["categories"]:
        category["id"] = OTHER_IDS[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = OTHER_IDS[annotation["category_id"]]
    content["categories"].reverse()


def only_square(content: dict[str, Any]) -> None:
    """Leave one class, which keeps its id."""
    content["categories"] = [{"id": 44, "name": "square"}]
    content["annotations"] = [{**a, "category_id": 44} for a in content["annotations"] if a["category_id"] == 2]


def with_another(content: dict[str, Any]) -> None:
    content["categories"].append({"id": 9, "name": "star"})


def misspelt(content: dict[str, Any]) -> None:
    content["categories"][1]["name"] = "Square"


def changed(shapes: Path, folder: Path, *, train: Change | None = None, val: Change | None = None) -> Path:
    """Return a copy of a data set with changed annotations."""
    shutil.copytree(shapes, folder)
    for split, change in (("train", train), ("val", val)):
        path = folder / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        if change is not None:
            change(content)
        path.write_text(json.dumps(content))
    return folder


def train_det(data: Path, out: Path, *words: object) -> int:
    options = json.dumps({**TINY, "box_score_thresh": 0.0, "box_detections_per_img": 20})
    line = ["--data-path", data, "--output-dir", out, "--model", MODEL, "--device", "cpu", "-j", 0, "--epochs", 1]
    line += ["--lr", 1e-4, "--norm-layer", "BatchNorm2d"]
    code: int = tool("train_det").main([*map(str, [*line, "--model-kwargs", options, *words])])
    return code


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an epoch of training leaves."""
    folder = tmp_path_factory.mktemp("run")
    assert train_det(shapes, folder) == 0
    return folder


def outcome(folder: Path) -> tuple[Any, Any]:
    """Return the metrics and the results in a folder."""
    metrics, results = (json.loads((folder / name).read_text()) for name in ("metrics.json", RESULTS_FILE))
    return metrics, results


def original(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results on renumbered annotations with the ids of the original ones."""
    numbers = {other: number for number, other in OTHER_IDS.items()}
    return [{**result, "category_id": numbers[result["category_id"]]} for result in results]


def test_files_name_the_classes(run: Path) -> None:
    for name in ("checkpoint.pth", "last.safetensors", "best.safetensors"):
        assert nd.load(run / name)[1].classes == CLASSES


def test_a_subset_that_keeps_its_id_is_trained_and_evaluated(shapes: Path, tmp_path: Path) -> None:
    data = changed(shapes, tmp_path / "data", train=only_square, val=only_square)
    assert train_det(data, tmp_path / "out") == 0
    _, spec = nd.load(tmp_path / "out" / "last.safetensors")
    assert (spec.num_classes, spec.classes) == (2, ("__background__", "square"))
    metrics, results = outcome(tmp_path / "out")
    assert {result["category_id"] for result in results} == {44}
    assert metrics["bbox"]["AP"] is not None


def test_training_and_validation_may_number_the_classes_differently(run: Path, shapes: Path, tmp_path: Path) -> None:
    """The network is the same, and so are the metrics; the results have the ids of the validation data."""
    data = changed(shapes, tmp_path / "data", val=renumbered)
    assert train_det(data, tmp_path / "out") == 0
    (metrics, results), (expected, plain) = outcome(tmp_path / "out"), outcome(run)
    assert metrics == expected
    assert original(results) == plain


def test_eval_det_and_test_only_match_by_name(run: Path, shapes: Path, tmp_path: Path) -> None:
    data = changed(shapes, tmp_path / "data", train=renumbered, val=renumbered)
    expected, plain = outcome(run)
    words = ["--data-path", data, "--device", "cpu", "-j", 0, "--checkpoint", run / "last.safetensors"]
    assert tool("eval_det").main([*map(str, [*words, "--output-dir", tmp_path / "eval"])]) == 0
    assert train_det(data, tmp_path / "weights", "--weights", run / "last.safetensors", "--test-only") == 0
    assert train_det(data, tmp_path / "resume", "--resume", run / "checkpoint.pth", "--test-only") == 0
    for folder in ("eval", "weights", "resume"):
        metrics, results = outcome(tmp_path / folder)
        assert metrics == expected
        assert original(results) == plain


def test_data_with_fewer_classes_is_evaluated(run: Path, shapes: Path, tmp_path: Path) -> None:
    data = changed(shapes, tmp_path / "data", val=only_square)
    assert train_det(data, tmp_path / "out", "--weights", run / "last.safetensors", "--test-only") == 0
    metrics, results = outcome(tmp_path / "out")
    squares = [{**result, "category_id": 44} for result in outcome(run)[1] if result["category_id"] == 2]
    assert results == squares != []
    assert metrics["bbox"]["AP"] is not None


@pytest.mark.parametrize(
    ("words", "change", "lacking"),
    [
        ("--resume CHECKPOINT", with_another, "'star' (id 9)"),
        ("--resume CHECKPOINT --test-only", misspelt, "'Square' (id 2; similar: 'square')"),
        ("--weights LAST --test-only", misspelt, "'Square' (id 2; similar: 'square')"),
        ("", with_another, "'star' (id 9)"),
    ],
)
def test_classes_that_the_detector_lacks_are_listed(
    words: str, change: Change, lacking: str, run: Path, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    """On resuming and in evaluation; and in the validation data of a new detector."""
    data = changed(shapes, tmp_path / "data", train=change if words else None, val=change)
    words = words.replace("CHECKPOINT", str(run / "checkpoint.pth")).replace("LAST", str(run / "last.safetensors"))
    source = words.split()[1] if words else data / "annotations" / "instances_train2017.json"
    message = f"has classes that {source} lacks: {lacking}"
    out = tmp_path / "out"
    refused(lambda: train_det(data, out, "--epochs", 2, *words.split()), 3, message, unwritten=out)


def test_eval_det_lists_classes_that_the_detector_lacks(
    run: Path, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    data, file = changed(shapes, tmp_path / "data", val=with_another), run / "last.safetensors"
    words = ["--data-path", str(data), "--device", "cpu", "-j", "0", "--checkpoint", str(file)]
    refused(lambda: tool("eval_det").main(words), 3, f"has classes that {file} lacks: 'star' (id 9)")


@pytest.mark.parametrize("count", [5, 2])
def test_other_keypoints_are_refused(count: int, shapes: Path, tmp_path: Path, refused: Refused) -> None:
    """Another number of them, or the same ones in another order."""
    model, names = "keypointrcnn_cpresnet50_fpn", ("left", "right", "top", "bottom", "centre")[:count]
    net, spec = make_detector(model, num_classes=4, num_keypoints=count, **TINY)
    file, out = tmp_path / "k.safetensors", tmp_path / "out"
    nd.save(net, replace(spec, classes=CLASSES, keypoints=names), file)
    message = f"has the keypoints centre, top, right, bottom, left; {file} has {', '.join(names)}"
    words = ["--dataset", "coco_kp", "--device", "cpu", "-j", "0", "--data-path", str(shapes)]
    refused(lambda: tool("eval_det").main([*words, "--checkpoint", str(file)]), 3, message)
    words += ["--model", model, "--weights", str(file), "--output-dir", str(out), "--test-only"]
    refused(lambda: tool("train_det").main(words), 3, message, unwritten=out)


def test_weights_of_other_classes_are_fine_tuned(
    run: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint as well as a file: what has the same name is kept, and the log says what."""
    data = changed(shapes, tmp_path / "data", train=misspelt, val=misspelt)
    for file in ("checkpoint.pth", "last.safetensors"):
        caplog.clear()
        assert train_det(data, tmp_path / file, "--weights", run / file, "--lr", 0) == 0
        line = f"{run / file}: the detector gets other classes; kept: circle, triangle; new: Square; left out: "
        assert f"{line}square" in caplog.text
        before, after = (nd.load(folder / "last.safetensors") for folder in (run, tmp_path / file))
        assert after[1].classes == ("__background__", "circle", "Square", "triangle")
        old, new = (net.roi_heads.box_predictor.cls_score.weight for net, _ in (before, after))
        assert [torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [True, True, False, True]
        assert torch.equal(*(net.roi_heads.box_head.fc6.weight for net, _ in (before, after)))


@pytest.mark.slow
def test_weights_of_the_same_classes_are_taken_as_they_are(
    run: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = changed(shapes, tmp_path / "data", train=renumbered, val=renumbered)
    assert train_det(data, tmp_path / "out", "--weights", run / "last.safetensors") == 0
    assert "gets other" not in caplog.text
    assert nd.load(tmp_path / "out" / "last.safetensors")[1].classes == CLASSES


@pytest.fixture(scope="module")
def unnamed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as earlier releases wrote it."""
    path = tmp_path_factory.mktemp("unnamed") / "checkpoint.pth"
    content = torch.load(run / "checkpoint.pth", weights_only=True)
    spec = json.loads(content["spec"])
    old = {name: value for name, value in spec.items() if name not in ("classes", "keypoints")}
    torch.save({**content, "spec": json.dumps({**old, "version": 1})}, path)
    return path


def test_files_without_names_have_category_ids_as_labels(
    run: Path, unnamed: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured, trained = tmp_path / "measured", tmp_path / "trained"
    assert train_det(shapes, measured, "--resume", unnamed, "--test-only") == 0
    assert outcome(measured) == outcome(run)
    assert f"{unnamed}: does not name its classes; its labels are taken for the category ids of" in caplog.text
    assert train_det(shapes, trained, "--resume", unnamed, "--epochs", 2) == 0
    assert nd.load(trained / "last.safetensors")[1].classes == CLASSES, "those of the data that it is trained on"


def test_other_ids_than_a_file_without_names_has_are_refused(
    unnamed: Path, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    data = changed(shapes, tmp_path / "data", train=with_another, val=with_another)
    message = f"has classes that {unnamed} lacks: 'star' (id 9); it does not name its classes, and its labels are the"
    for words in (["--epochs", 2], ["--test-only"]):
        refused(lambda words=words: train_det(data, out, "--resume", unnamed, *words), 3, message, unwritten=out)


def test_a_file_without_names_is_trained_on_fewer_classes(unnamed: Path, shapes: Path, tmp_path: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        content["categories"] = content["categories"][:2]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] < 3]

    data = changed(shapes, tmp_path / "fewer", train=fewer, val=fewer)
    assert train_det(data, tmp_path / "out", "--resume", unnamed, "--epochs", 2) == 0
    spec = nd.load(tmp_path / "out" / "last.safetensors")[1]
    assert (spec.num_classes, spec.classes) == (4, (*CLASSES[:3], "N/A"))


def test_torchvisions_weights_name_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    net, _ = make_detector(MODEL)
    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda self, **kw: net.state_dict())
    for given in (weights, "COCO_V1"):
        assert make_detector(MODEL, weights=given)[1].classes == tuple(weights.meta["categories"])
    assert nd.compress("COCO_V1", arch=MODEL)[1].classes == tuple(weights.meta["categories"])
    assert nd.compress(net, arch=MODEL)[1].classes == (), "a network object does not say it"
    assert make_detector(MODEL)[1].classes == ()


def test_compression_keeps_the_names(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    words = ["--arch", MODEL, "--weights", str(run / "last.safetensors"), "--output", str(file)]
    assert tool("compress").main([*words, "--rates", "[0.5]*20", "--criterion", "norm"]) == 0
    assert nd.load(file)[1].classes == CLASSES


def test_visualize_draws_the_names_of_the_file(run: Path, shapes: Path, tmp_path: Path) -> None:
    path = next((shapes / "val2017").iterdir())
    net, spec = nd.load(run / "last.safetensors")
    renamed = tmp_path / "renamed.safetensors"
    nd.save(net, replace(spec, classes=("__background__", "x", "y", "z")), renamed)
    words = ["--checkpoint", str(renamed), "--device", "cpu", "--score-thresh", "0", "--input", str(path)]
    words += ["--annotations", str(shapes / "annotations" / "instances_val2017.json")]
    assert tool("visualize").main([*words, "--output", str(tmp_path / "out")]) == 0
    image, drawn = (pil_to_tensor(Image.open(folder / path.name)) for folder in (path.parent, tmp_path / "out"))
    expected = draw_detections(image, detect(net, image / 255, threshold=0), Legend({1: "x", 2: "y", 3: "z"}))
    assert torch.equal(drawn, expected)
