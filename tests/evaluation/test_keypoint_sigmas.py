"""The tolerances of keypoints: COCO's, 0.05, those of the annotations, or those that are given."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused, tool

from norton_det.data import CocoDataset
from norton_det.errors import DataError
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.keypoint_sigmas import set_sigmas


def moved(coco: Any, similarity: float, sigmas: list[float]) -> list[dict[str, Any]]:
    """Return results whose keypoints are moved by as much as gives this similarity with these tolerances, by OKS."""
    results = []
    for annotation in coco.dataset["annotations"]:
        points = list(annotation["keypoints"])
        for i, sigma in enumerate(sigmas):
            points[3 * i] += 2 * sigma * math.sqrt(-2 * annotation["area"] * math.log(similarity))
        results.append({k: annotation[k] for k in ("image_id", "category_id")} | {"keypoints": points, "score": 1.0})
    return results


@pytest.mark.parametrize("sigmas", [None, [0.1], [0.02, 0.05, 0.1, 0.2, 0.3]])
def test_a_similarity_is_that_of_the_tolerances(sigmas: list[float] | None, shapes: Path) -> None:
    """Results of a similarity of .72 count at .50 to .70, and at no higher threshold."""
    coco = CocoDataset(shapes, "val", "coco_kp").coco
    set_sigmas(coco, sigmas, "val.json")
    used = [0.05] * 5 if sigmas is None else sigmas * (5 // len(sigmas))
    metrics = CocoEvaluator(coco, ["keypoints"]).evaluate(moved(coco, 0.72, used))["keypoints"]
    assert (round(metrics["AR50"], 3), metrics["AR75"], round(metrics["AR"], 3)) == (1, 0, 0.5)


def test_annotations_may_have_their_own(shapes: Path, tmp_path: Path) -> None:
    """And a command may override them."""
    path, results = tmp_path / "val.json", tmp_path / "results.json"
    content = json.loads((shapes / "annotations" / "person_keypoints_val2017.json").read_text())
    for category in content["categories"]:
        category["keypoint_sigmas"] = [0.3] * 5
    path.write_text(json.dumps(content))
    coco = CocoDataset(None, "val", "coco_kp", images=shapes / "val2017", annotations=path).coco
    results.write_text(json.dumps(moved(coco, 0.72, [0.3] * 5)))
    words = ["--annotations", str(path), "--results", str(results), "--output-dir", str(tmp_path)]
    for more, expected in (([], 1), (["--keypoint-sigmas", "0.05"], 0)):
        assert tool("eval_det").main([*words, *more]) == 0
        assert round(json.loads((tmp_path / "metrics.json").read_text())["keypoints"]["AR50"]) == expected
    coco.dataset["categories"][0]["keypoint_sigmas"] = [0.3] * 4
    with pytest.raises(DataError, match=r"category 1: keypoint_sigmas is .*; expected 5 numbers above 0"):
        CocoEvaluator(coco, ["keypoints"]).evaluate([])


def test_wrong_tolerances(shapes: Path, refused: Refused) -> None:
    coco = CocoDataset(shapes, "val", "coco_kp").coco
    refused(lambda: set_sigmas(coco, [0.1] * 3, "v.json"), 2, "3 keypoint sigmas; v.json has 5 keypoints; expected 5")
    refused(lambda: set_sigmas(CocoDataset(shapes, "val").coco, [0.1], "v.json"), 2, "v.json has no keypoints")
    words = ["--results", "x.json", "--annotations", "y.json", "--keypoint-sigmas"]
    for value in ("0", "-1", "nan", "inf", "x"):
        refused(
            lambda value=value: tool("eval_det").main([*words, value]), 2, f"--keypoint-sigmas: '{value}' is no tol"
        )
    line = ["--keypoint-sigmas", "0.1", "--device", "cpu", "--data-path", str(shapes)]
    refused(lambda: tool("train_det").main(line), 2, "--keypoint-sigmas with --dataset coco: expected coco_kp")
