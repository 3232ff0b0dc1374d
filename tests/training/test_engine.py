"""Training and evaluation loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn

from norton_det.builders import make_detector
from norton_det.data import CocoDataset, read_coco
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.coco import evaluate_results, format_metrics
from norton_det.evaluation.coco_results import to_results
from norton_det.evaluation.predict import predict
from norton_det.models.tasks import kinds_of
from norton_det.training.optim import make_optimizer, make_schedule


def perfect(data: CocoDataset) -> list[dict]:
    """Turn the ground truth into results, by way of a detector's output."""
    results = []
    for i in range(len(data)):
        _, target = data[i]
        prediction = {
            "boxes": torch.as_tensor(target["boxes"]),
            "labels": target["labels"],
            "scores": torch.linspace(0.9, 0.8, len(target["labels"])),
        }
        if "masks" in target:
            prediction["masks"] = torch.as_tensor(target["masks"]).unsqueeze(1).float()
        if "keypoints" in target:
            prediction["keypoints"] = target["keypoints"]
        results += to_results(target["image_id"], prediction)
    return results


def test_ground_truth_scores_one(shapes: Path) -> None:
    data = CocoDataset(shapes, "train", "coco_kp", masks=True)
    results = json.loads(json.dumps(perfect(data)))
    metrics = evaluate_results(data.coco, results, ["bbox", "segm", "keypoints"])
    for kind in ("bbox", "segm", "keypoints"):
        assert metrics[kind]["AP50"] == pytest.approx(1)
        assert metrics[kind]["AP"] > 0.95
    assert metrics["bbox"]["APl"] is None  # nothing is larger than 96 pixels here
    assert "APl    no ground truth" in format_metrics(metrics)


def test_shifted_boxes_score_what_pycocotools_says(shapes: Path) -> None:
    from pycocotools.cocoeval import COCOeval

    data = CocoDataset(shapes, "train")
    results = perfect(data)
    for result in results[::2]:
        result["bbox"][0] += 6
    metrics = evaluate_results(data.coco, results, ["bbox"])
    reference = COCOeval(data.coco, data.coco.loadRes([dict(r) for r in results]), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert list(metrics["bbox"].values()) == [None if v == -1 else v for v in reference.stats]
    assert 0 < metrics["bbox"]["AP"] < 1


def test_nothing_found_scores_zero(shapes: Path) -> None:
    coco = read_coco(shapes / "annotations" / "instances_val2017.json")
    assert evaluate_results(coco, [], ["bbox"])["bbox"]["AP"] == 0


def test_results_that_do_not_fit(shapes: Path) -> None:
    coco = read_coco(shapes / "annotations" / "instances_val2017.json")
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3], "score": 0.5}
    with pytest.raises(DataError, match="result 0: image_id 99"):
        evaluate_results(coco, [{**row, "image_id": 99}], ["bbox"])
    with pytest.raises(DataError, match="result 0 has no 'segmentation'"):
        evaluate_results(coco, [row], ["segm"])


def test_results_by_hand() -> None:
    mask = torch.zeros(1, 1, 4, 5)
    mask[0, 0, 1:3, 2:4] = 0.9
    prediction = {
        "boxes": torch.tensor([[2.0, 1, 4, 3]]),
        "labels": torch.tensor([3]),
        "scores": torch.tensor([0.5]),
        "masks": mask,
        "keypoints": torch.tensor([[[2.0, 1, 1], [3, 2, 1]]]),
    }
    (row,) = to_results(8, prediction)
    assert row["bbox"] == [2, 1, 2, 2]
    assert row["keypoints"] == [2, 1, 1, 3, 2, 1]
    assert (row["image_id"], row["category_id"], row["score"]) == (8, 3, 0.5)
    from pycocotools import mask as rle

    assert np.array_equal(rle.decode(row["segmentation"]), (mask[0, 0] > 0.5).numpy())


def test_optimizers_and_schedules() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=0.1, norm_weight_decay=0.0)
    assert {g["weight_decay"]: g["params"] for g in optimizer.param_groups} == {
        0.1: list(net[0].parameters()),
        0.0: list(net[1].parameters()),
    }
    with pytest.raises(UsageError, match="unknown optimizer 'lion'"):
        make_optimizer(net, "lion", lr=1, momentum=0, weight_decay=0)
    with pytest.raises(UsageError, match="unknown lr_scheduler 'steps'"):
        make_schedule(optimizer, "steps", epochs=1, steps=[], gamma=0.1)


def test_kinds(shapes: Path) -> None:
    net, _ = make_detector("maskrcnn_cpresnet50_fpn", num_classes=4)
    assert kinds_of(net) == ("bbox", "segm")


def test_a_detector_that_finds_nothing_is_evaluated_by_what_is_below_its_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, _ = make_detector("fasterrcnn_cpresnet50_fpn", num_classes=60, **{**TINY, "box_score_thresh": 0.9999})
    batches = [([torch.rand(3, 64, 64)], [{"image_id": i}]) for i in (3, 5)]
    results = predict(net, iter(batches), torch.device("cpu"))
    assert {result["image_id"] for result in results} == {3, 5}, "in one pass over the images"
    assert all(0 < result["score"] <= 0.9999 for result in results)
    assert net.roi_heads.score_thresh == 0.9999
    assert "No detections above the score threshold 0.9999" in caplog.text
    caplog.clear()
    net.roi_heads.score_thresh = 0.0
    assert predict(net, batches, torch.device("cpu")) == results
    assert "No detections" not in caplog.text


def test_of_a_detector_that_finds_something_nothing_below_its_bound_is_evaluated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, _ = make_detector("fasterrcnn_cpresnet50_fpn", num_classes=60, **{**TINY, "box_score_thresh": 0.0})
    batches = [([torch.rand(3, 64, 64)], [{"image_id": i}]) for i in range(4)]
    scores = {i: [row["score"] for row in predict(net, batches[i : i + 1], torch.device("cpu"))] for i in range(4)}
    ranked = sorted(scores, key=lambda i: max(scores[i]))
    bound = (max(scores[ranked[1]]) + max(scores[ranked[2]])) / 2
    net.roi_heads.score_thresh = bound
    results = predict(net, iter([batches[i] for i in ranked]), torch.device("cpu"))
    assert {row["image_id"] for row in results} == set(ranked[2:])
    assert min(row["score"] for row in results) > bound == net.roi_heads.score_thresh
    assert "No detections" not in caplog.text
