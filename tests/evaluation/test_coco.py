"""COCO evaluation: the reference's figures where it is right, right ones or a refusal where it is not."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Refused, fill, tool
from pycocotools import mask as rle
from torchvision.models.detection import transform

from benchmarks.faults.random_coco import SIZE, indexed, random_data, reference
from norton_det.builders import make_detector
from norton_det.data import CocoDataset, collate
from norton_det.data.coco.checks.annotations import CHECKS
from norton_det.errors import DataError, UsageError
from norton_det.evaluation import coco as coco_eval
from norton_det.evaluation.coco import CLASSES, METRICS, CocoEvaluator, evaluate_results
from norton_det.evaluation.coco_results import to_results
from norton_det.evaluation.predict import predict

KINDS = ["bbox", "segm", "keypoints"]
PACKAGES = {"faster": "faster_coco_eval", "hotcoco": "hotcoco"}


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 200), marks=pytest.mark.slow)])
def test_figures_are_those_of_pycocotools(seeds: range) -> None:
    figures = []
    for seed in seeds:
        content, results = random_data(seed)
        metrics = evaluate_results(indexed(content), results, KINDS)
        for kind in KINDS:
            assert list(metrics[kind].values()) == reference(content, results, kind)
            figures.append(metrics[kind]["AP"])
    assert sum(figure is not None and 0 < figure < 1 for figure in figures) > 0.9 * len(figures)


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 200), marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["faster", "hotcoco"])
def test_other_backends_agree(seeds: range, backend: str) -> None:
    pytest.importorskip(PACKAGES[backend])
    for seed in seeds:
        content, results = random_data(seed)
        thresholds = None if seed % 2 else [0.3, 0.5, 0.75]
        slow, fast = (
            CocoEvaluator(indexed(content), KINDS, backend=name, iou_thresholds=thresholds, max_detections=20 + seed)
            for name in ("pycocotools", backend)
        )
        slow, fast = (evaluator.evaluate(results, per_class=True) for evaluator in (slow, fast))
        for kind in KINDS:
            assert fast[kind].pop(CLASSES) == {k: pytest.approx(v) for k, v in slow[kind].pop(CLASSES).items()}
            assert fast[kind] == pytest.approx(slow[kind])
    assert evaluate_results(indexed(content), [], ["bbox"], backend=backend)["bbox"]["AP"] == 0


@pytest.mark.parametrize("backend", ["faster", "hotcoco"])
def test_ids_that_are_names_are_for_pycocotools(backend: str) -> None:
    pytest.importorskip(PACKAGES[backend])
    content, results = random_data(1)
    expected = evaluate_results(indexed(content), results, ["bbox"])
    for entry in [*content["annotations"], *results]:
        entry["image_id"] = f"image {entry['image_id']}"
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    assert evaluate_results(indexed(content), results, ["bbox"]) == expected
    with pytest.raises(DataError, match=f"annotations: id 'image 0' is not a whole number; backend {backend} takes"):
        evaluate_results(indexed(content), results, ["bbox"], backend=backend)


def test_each_threshold_has_its_metrics() -> None:
    content, results = random_data(1)
    usual = evaluate_results(indexed(content), results, KINDS)
    evaluator = CocoEvaluator(indexed(content), KINDS, iou_thresholds=[0.5, 0.75])
    for kind, metrics in evaluator.evaluate(results).items():
        assert list(metrics) == list(METRICS[kind])
        assert metrics["AP50"] == usual[kind]["AP50"]
        assert metrics["AP75"] == usual[kind]["AP75"]
        assert metrics["AP"] == pytest.approx((metrics["AP50"] + metrics["AP75"]) / 2)
    lower = CocoEvaluator(indexed(content), ["bbox"], iou_thresholds=[0.05, 0.5]).evaluate(results)["bbox"]
    assert lower["AP5"] >= lower["AP50"] == usual["bbox"]["AP50"]
    for wrong in ([], [0.5, 0.5], [0.0], [50.0]):
        with pytest.raises(UsageError, match=r"iou_thresholds is .*; expected increasing numbers"):
            CocoEvaluator(indexed(content), ["bbox"], iou_thresholds=wrong)


def test_classes_average_to_the_whole() -> None:
    content, results = random_data(1)
    for kind, figures in evaluate_results(indexed(content), results, KINDS, per_class=True).items():
        classes = figures[CLASSES]
        assert list(classes) == ["class 1", "class 2", "class 3", "class 4"]
        assert set(classes["class 4"].values()) == {None}
        for line in METRICS[kind]:
            values = [figures[line] for figures in classes.values() if figures[line] is not None]
            assert figures[line] == (pytest.approx(np.mean(values)) if values else None)
    one = {**content, "annotations": [a for a in content["annotations"] if a["category_id"] == 2]}
    alone = evaluate_results(indexed(one), [r for r in results if r["category_id"] == 2], ["bbox"])["bbox"]
    whole = evaluate_results(indexed(content), results, ["bbox"], per_class=True)["bbox"]
    assert whole[CLASSES]["class 2"] == alone


@pytest.mark.parametrize("backend", ["pycocotools", "faster", "hotcoco"])
def test_ids_of_annotations_do_not_matter(backend: str) -> None:
    pytest.importorskip(PACKAGES.get(backend, backend))
    content, results = random_data(2)
    content["annotations"][0]["iscrowd"] = 0
    results += [{**annotation, "score": 1.0} for annotation in content["annotations"]]
    expected = evaluate_results(indexed(content), results, KINDS)
    zero, same = copy.deepcopy(content), copy.deepcopy(content)
    for i, annotation in enumerate(zero["annotations"]):
        annotation["id"] = i
    for annotation in same["annotations"]:
        annotation["id"] = 5
    assert reference(zero, results, "bbox") != reference(content, results, "bbox")  # what goes wrong in silence
    for content in (zero, same):
        metrics = evaluate_results(indexed(content), results, KINDS, backend=backend)
        for kind in KINDS:
            assert metrics[kind] == pytest.approx(expected[kind])


def test_nothing_is_changed() -> None:
    content, results = random_data(3)
    coco = indexed(copy.deepcopy(content))
    given = copy.deepcopy(results)
    evaluate_results(coco, given, KINDS, per_class=True)
    assert coco.dataset == content
    assert given == results
    evaluator = CocoEvaluator(coco, KINDS)
    first = evaluator.evaluate(results)
    assert set(evaluator.evaluate([])["bbox"].values()) <= {0, None}
    assert evaluator.evaluate(results) == first


def test_keypoints_are_counted_by_their_visibility() -> None:
    content, results = random_data(4)
    expected = evaluate_results(indexed(content), results, ["keypoints"])
    for annotation in content["annotations"]:
        annotation["num_keypoints"] = 3 - annotation["num_keypoints"]
    assert evaluate_results(indexed(content), results, ["keypoints"]) == expected
    for annotation in content["annotations"]:
        annotation["keypoints"] = [0] * 9
    invisible = evaluate_results(indexed(content), results, ["keypoints"])["keypoints"]
    assert set(invisible.values()) == {None}
    assert set(evaluate_results(indexed(content), [], ["keypoints"])["keypoints"].values()) == {None}
    content["categories"] = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    with pytest.raises(DataError, match="no category has keypoints"):
        evaluate_results(indexed(content), results, ["keypoints"])


def test_all_forms_of_masks_are_read() -> None:
    polygon = [10, 10, 60, 10, 60, 40, 10, 40]
    code = rle.frPyObjects([polygon], SIZE, SIZE)[0]
    mask = rle.decode(code)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.flatten("F"), [2]]).astype(int))))
    implementations: list[Any] = [[polygon], {**code, "counts": code["counts"].decode()}]
    implementations.append({"size": [SIZE, SIZE], "counts": runs.tolist()})
    content, _ = random_data(0)
    for truth in implementations:
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "area": float(mask.sum()), "segmentation": truth}
        for found in implementations:
            row = {"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": found}
            metrics = evaluate_results(indexed({**content, "annotations": [annotation]}), [row], ["segm"])
            assert metrics["segm"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("bbox", "results", {"score": float("nan")}, "results: wrong scores: result 0: score nan"),
        ("bbox", "results", {"image_id": 77}, "results: results of unknown images: result 0: image_id 77"),
        ("segm", "results", {"segmentation": {"size": [9, 9], "counts": [81]}}, r"result 0: .* of size \[9, 9\]"),
        ("segm", "results", {"segmentation": {"size": [SIZE, SIZE], "counts": [9]}}, "result 0: .* add up to 9"),
        ("keypoints", "results", {"keypoints": [1, 1, 1]}, "result 0: keypoints: 3 numbers; expected 9"),
        ("bbox", "annotations", {"bbox": [0, 0, float("nan"), 1]}, "annotations: malformed boxes: annotation 1"),
        ("bbox", "annotations", {"area": None}, "annotations: wrong areas: annotation 1: area is None"),
        ("segm", "annotations", {"segmentation": [[1, 1, float("nan"), 2, 3, 3]]}, "annotation 1: polygon with"),
        ("keypoints", "annotations", {"keypoints": [1, 1, 1]}, "annotation 1: keypoints: 3 numbers; expected 9"),
    ],
)
def test_what_would_go_wrong_is_refused(kind: str, part: str, change: dict[str, Any], message: str) -> None:
    content, results = random_data(0)
    {**content, "results": results}[part][0].update(change)
    with pytest.raises(DataError, match=message):
        evaluate_results(indexed(content), results, [kind])


def test_images_that_come_twice_are_refused() -> None:
    content, results = random_data(0)
    content["images"].append(content["images"][1])
    with pytest.raises(DataError, match="duplicate image ids: id 1 comes 2 times"):
        evaluate_results(indexed(content), results, ["bbox"])


def test_unknown_categories_are_refused_if_there_is_no_other(caplog: pytest.LogCaptureFixture) -> None:
    content, results = random_data(0)
    expected = evaluate_results(indexed(content), results, ["bbox"])
    stray = [{**result, "category_id": 50} for result in results]
    assert evaluate_results(indexed(content), results + stray, ["bbox"]) == expected
    assert f"results of unknown categories: result {len(results)}: category_id 50" in caplog.text
    with pytest.raises(DataError, match="category ids 50; the annotations have 1, 2, 3, 4"):
        evaluate_results(indexed(content), stray, ["bbox"])


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = random_data(0)
    with pytest.raises(UsageError, match="unknown kind 'box'; expected one of: bbox, segm, keypoints"):
        evaluate_results(indexed(content), results, ["box"])
    with pytest.raises(UsageError, match="unknown backend 'slow'"):
        evaluate_results(indexed(content), results, ["bbox"], backend="slow")
    for backend, extra in (("faster", "fast"), ("hotcoco", "hotcoco")):
        monkeypatch.setitem(__import__("sys").modules, PACKAGES[backend], None)
        with pytest.raises(UsageError, match=rf"needs .*coco.*: pip install norton-det\[{extra}\]"):
            evaluate_results(indexed(content), results, ["bbox"], backend=backend)
    assert {name for names in coco_eval._TRUTH_CHECKS.values() for name in names} <= {check.name for check in CHECKS}


def test_masks_are_pasted_one_by_one(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CocoDataset(shapes, "val")
    net, _ = make_detector("maskrcnn_cpresnet50_fpn", num_classes=4, box_score_thresh=0.0, **TINY)
    batches = [collate([data[0], data[1]]), collate([data[2]])]
    net.eval()
    with torch.inference_mode():
        whole = [
            row
            for images, targets in batches
            for target, found in zip(targets, net(images), strict=True)
            for row in to_results(target["image_id"], found)
        ]

    def refuse(*arguments: object) -> None:
        raise AssertionError("all masks of an image at once")

    monkeypatch.setattr(transform, "paste_masks_in_image", refuse)
    assert predict(net, batches, torch.device("cpu")) == whole
    assert len({row["segmentation"]["counts"] for row in whole}) > 1
    monkeypatch.undo()
    assert "masks" in net(batches[0][0])[0]  # the model is as it was


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_eval_det_takes_any_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, results = random_data(0)
    words = ["--annotations", write(tmp_path / "truth.json", content), "--results", write(tmp_path / "r.json", results)]
    expected = evaluate_results(indexed(content), results, KINDS, per_class=True)
    capsys.readouterr()
    assert tool("eval_det").main([*words, "--json", "--per-class"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert tool("eval_det").main([*words, "--per-class", "--kinds", "bbox", "--output-dir", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.startswith("class 2"))
    assert row[2] == f"{expected['bbox'][CLASSES]['class 2']['AP']:.3f}"
    assert "IoU metric: segm" not in shown
    assert json.loads((tmp_path / "o" / "metrics.json").read_text()) == {"bbox": expected["bbox"]}
    assert not (tmp_path / "o" / "coco_instances_results.json").exists()  # they are there already
    boxes = [{k: r[k] for k in ("image_id", "category_id", "bbox", "score")} for r in results]
    words[-1] = write(tmp_path / "boxes.json", boxes)
    assert tool("eval_det").main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"bbox"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--annotations TRUTH --results SPOILT", 3, "spoilt.json: results of unknown images: result 0: image_id 99"),
        ("--annotations TRUTH --results WRAPPED", 3, "holds a dict; expected a list of COCO results"),
        ("--annotations TRUTH --results none", 3, "none: no such file"),
        ("--annotations TRUTH", 2, "one of the arguments --checkpoint --results --compare is required"),
        ("--results EMPTY", 2, "neither --annotations nor --data-path is given"),
        ("--annotations TRUTH --results EMPTY --kinds box", 2, "--kinds: 'box' is unknown"),
        ("--annotations TRUTH --results EMPTY --backend x", 2, "--backend: 'x' is unknown"),
        ("--annotations TRUTH --checkpoint x.pth", 2, "neither --images nor --data-path is given"),
    ],
)
def test_eval_det_refuses_what_does_not_fit(
    words: str, code: int, message: str, tmp_path: Path, refused: Refused
) -> None:
    content, results = random_data(0)
    results[0]["image_id"] = 99
    files = {"TRUTH": content, "SPOILT": results, "EMPTY": [], "WRAPPED": {"annotations": results}}
    places = {name: Path(write(tmp_path / f"{name.lower()}.json", data)) for name, data in files.items()}
    refused(lambda: tool("eval_det").main(fill(words.split(), places)), code, message)


def test_eval_det_of_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, empty = write(tmp_path / "truth.json", random_data(0)[0]), write(tmp_path / "empty.json", [])
    assert tool("eval_det").main(["--annotations", truth, "--results", empty, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bbox"]["AP"] == 0
