"""Limits of the number of detections: said where they matter, and set where it is wanted."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Refused, tool
from evaluation.test_coco import indexed, random_data
from pycocotools.cocoeval import COCOeval

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.errors import UsageError
from norton_det.evaluation.coco import CocoEvaluator, evaluate_results, format_metrics
from norton_det.evaluation.limits import warn_of_detector_limit

OBJECTS = 300


def crowded() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an image with 300 objects, and perfect results."""
    boxes = [[20 * (i % 20), 20 * (i // 20), 10, 10] for i in range(OBJECTS)]
    common = {"image_id": 7, "category_id": 1}
    annotations = [{**common, "id": i + 1, "bbox": box, "area": 100, "iscrowd": 0} for i, box in enumerate(boxes)]
    images = [{"id": 7, "file_name": "7.png", "width": 400, "height": 300}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    return content, [{**common, "bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)]


BACKENDS = {"pycocotools": "pycocotools", "faster": "faster_coco_eval", "hotcoco": "hotcoco"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_objects_beyond_the_limit_are_told_and_found_with_another_one(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(BACKENDS[backend])
    content, results = crowded()
    metrics = evaluate_results(indexed(content), results, ["bbox"], backend=backend)["bbox"]
    assert metrics["AP"] == pytest.approx(0.337, abs=0.001)
    assert metrics["AR100"] == pytest.approx(1 / 3)
    assert (
        "annotations: 1 images have more than 100 objects of a class (image 7: 300 of cell). The evaluation of bbox "
        "considers the 100 detections of a class in an image with the highest scores, so that 200 of 300 objects "
        "cannot be found; --max-detections sets another limit"
    ) in caplog.text
    caplog.clear()
    more = evaluate_results(
        indexed(content), results, ["bbox"], backend=backend, max_detections=OBJECTS, per_class=True
    )
    classes = more["bbox"].pop("classes")
    assert classes == {"cell": more["bbox"]}
    assert (more["bbox"]["AP"], more["bbox"]["AR300"]) == (pytest.approx(1), pytest.approx(1))
    assert more["bbox"]["AR10"] == pytest.approx(10 / OBJECTS), "the smaller limits are as they are"
    assert " AR300  1.000" in format_metrics(more)
    assert "AR100" not in more["bbox"]
    assert not caplog.records


def test_crowds_and_few_objects_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    content, _ = crowded()
    for annotation in content["annotations"][100:]:
        annotation["iscrowd"] = 1
    CocoEvaluator(indexed(content), ["bbox"])
    data, _ = random_data(0)
    CocoEvaluator(indexed(data), ["bbox", "segm", "keypoints"])
    assert not caplog.records


@pytest.mark.parametrize("limit", [11, 12, 100, 250])
def test_a_limit_is_that_of_pycocotools(limit: int) -> None:
    """Held against the precision and recall that pycocotools has before it summarises."""
    content, results = random_data(limit)
    results *= 4  # several detections of one object
    metrics = evaluate_results(indexed(content), results, ["bbox", "keypoints"], max_detections=limit)
    for kind in ("bbox", "keypoints"):
        truth = indexed(copy.deepcopy(content))
        fields = ("image_id", "category_id", "score", kind)
        evaluation = COCOeval(truth, truth.loadRes([{f: copy.deepcopy(r[f]) for f in fields} for r in results]), kind)
        evaluation.params.kpt_oks_sigmas = np.full(3, 0.05)
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
        precision, recall = evaluation.eval["precision"][..., 0, 2], evaluation.eval["recall"][..., 0, 2]
        assert metrics[kind]["AP"] == pytest.approx(precision[precision > -1].mean())
        name = "AR" if kind == "keypoints" else f"AR{limit}"
        assert metrics[kind][name] == pytest.approx(recall[recall > -1].mean())
    if limit == 100:
        assert evaluate_results(indexed(content), results, ["bbox"])["bbox"] == metrics["bbox"]


def test_boxes_in_the_results_change_only_the_metrics_by_size_of_pycocotools() -> None:
    """As the documentation says: loadRes takes the area of a mask's box."""
    different = set()
    for seed in range(8):
        content, results = random_data(seed)
        metrics = evaluate_results(indexed(content), results, ["segm"])["segm"]
        truth = indexed(copy.deepcopy(content))
        evaluation = COCOeval(truth, truth.loadRes([{**r, "keypoints": []} for r in copy.deepcopy(results)]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        plain = [None if v == -1 else v for v in evaluation.stats]
        different |= {
            name for name, ours, theirs in zip(metrics, metrics.values(), plain, strict=True) if ours != theirs
        }
    assert different
    assert all(name[-1] in "sml" for name in different)


@pytest.mark.parametrize("limit", [-1, 0, 10])
def test_a_limit_that_is_too_small_is_refused(limit: int) -> None:
    content, _ = crowded()
    with pytest.raises(UsageError, match=f"max_detections is {limit}; expected more than 10, the limit of AR10"):
        CocoEvaluator(indexed(content), ["bbox"], max_detections=limit)


def test_the_limit_of_a_detector_is_told(caplog: pytest.LogCaptureFixture) -> None:
    net, _ = make_detector("fasterrcnn_cpresnet50_fpn", num_classes=2, **{**TINY, "box_detections_per_img": 120})
    content, _ = crowded()
    warn_of_detector_limit(net, content, "x.json")
    setting = "the detector returns at most 120 in an image (box_detections_per_img of train-det --model-kwargs)"
    assert f"x.json: 1 images have more than 120 objects (image 7: 300); {setting}" in caplog.text
    caplog.clear()
    few = {**content, "annotations": content["annotations"][:120]}
    warn_of_detector_limit(net, few, "x.json", 120)
    assert not caplog.records
    warn_of_detector_limit(net, few, "x.json", 150)
    assert f"--max-detections is 150; {setting}" in caplog.text


def test_eval_det_takes_the_limit(tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, part in zip(("truth.json", "results.json"), crowded(), strict=True):
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps(part))
    words = ["--annotations", str(paths[0]), "--results", str(paths[1]), "--max-detections"]
    assert tool("eval_det").main([*words, "300", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bbox"]["AP"] == pytest.approx(1)
    assert tool("eval_det").main([*words, "300", "--per-class"]) == 0
    assert "AR300" in capsys.readouterr().out
    refused(lambda: tool("eval_det").main([*words, "9"]), 2, "max_detections is 9; expected more than 10")


def test_commands_tell_the_limit_of_their_detector(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "fasterrcnn_cpresnet50_fpn"
    net, spec = make_detector(model, num_classes=4, **{**TINY, "box_detections_per_img": 1})
    nd.save(net, spec, tmp_path / "d.safetensors")
    words = ["--data-path", str(shapes), "--device", "cpu", "-j", "0", "--max-detections", "50"]
    assert tool("eval_det").main([*words, "--checkpoint", str(tmp_path / "d.safetensors"), "--json"]) == 0
    assert "AR50" in json.loads(capsys.readouterr().out)["bbox"]
    assert "more than 1 objects (image" in caplog.text
    assert "the detector returns at most 1 in an image" in caplog.text
    caplog.clear()
    words += ["--model", model, "--weights", str(tmp_path / "d.safetensors"), "--test-only"]
    assert tool("train_det").main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    assert "AR50" in json.loads((tmp_path / "out" / "metrics.json").read_text())["bbox"]
    assert "the detector returns at most 1 in an image" in caplog.text
