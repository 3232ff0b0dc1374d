"""What norton-det eval-det prints and writes, in each format, and of the first images alone."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tool

from benchmarks.faults.random_coco import indexed, random_data
from norton_det.evaluation.coco import CLASSES, CocoEvaluator, evaluate_results, metric_names
from norton_det.evaluation.compare import compare_results
from norton_det.evaluation.error_split import dict_of, split_errors
from norton_det.evaluation.matches import match_results
from norton_det.evaluation.precision_recall import best_thresholds
from norton_det.evaluation.subset import first_images, results_of
from norton_det.evaluation.tables import comparison_csv

KINDS = ["bbox", "segm", "keypoints"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    content, results = random_data(3)
    for name, data in (("truth", content), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return ["--annotations", str(tmp_path / "truth.json"), "--results", str(tmp_path / "results.json")]


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert tool("eval_det").main(words) == 0
    return capsys.readouterr().out


def test_each_format_has_the_same_numbers(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*files, "--per-class", "--errors", "--f1"]
    content = json.loads(shown([*words, "--format", "json", "--output", str(tmp_path / "x.csv")], capsys))
    assert json.loads(shown([*words, "--json"], capsys)) == content
    data, results = random_data(3)
    evaluator = CocoEvaluator(indexed(data), KINDS)
    expected = evaluator.evaluate(results, per_class=True)
    for kind, values in content.items():
        assert {name: values[name] for name in metric_names(values)} | {CLASSES: values[CLASSES]} == expected[kind]
        matches = match_results(evaluator, results, kind)
        overall, of_classes = best_thresholds(matches)
        assert values["f1"]["all"] == vars(overall)
        assert values["f1"][CLASSES] == {name: vars(point) for name, point in of_classes.items()}
        assert values.get("errors") == (None if kind == "keypoints" else dict_of(split_errors(matches)))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    written = {(row["kind"], row["class"], row["metric"]): row["value"] for row in rows}
    assert len(written) == len(rows), "each has one row"
    for kind, values in content.items():
        for label, lines in {"": expected[kind], **expected[kind][CLASSES]}.items():
            for name in metric_names(lines):
                value = lines[name]
                assert written[kind, label, name] == ("" if value is None else str(value))
        assert written[kind, "", "best f1"] == str(values["f1"]["all"]["f1"])
    assert float(written["segm", "", "dAP missed"]) == content["segm"]["errors"]["dAP"]["missed"]
    for table in (shown([*words, "--format", "markdown"], capsys), shown(words, capsys)):
        cells = [[cell for cell in line.replace("|", " ").split() if cell] for line in table.splitlines()]
        line = next(row for row in cells if row[:1] == ["all"])
        assert line[1] == f"{content['bbox']['AP']:.3f}"
        line = next(row for row in cells if row[:1] == ["background"])
        assert line[1:] == [str(content["bbox"]["errors"]["counts"]["background"]), line[2]]


def test_a_comparison_is_written_in_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, results = random_data(1)
    for name, data in (("truth", content), ("a", results), ("b", results[::2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    words = ["--annotations", str(tmp_path / "truth.json"), "--compare", a, b, "--draws", "40", "--kinds", "bbox"]
    thresholds: list[Any] = [0.4, 0.5]
    words += ["--iou-thresholds", *map(str, thresholds)]
    text = shown([*words, "--format", "markdown", "--output", str(tmp_path / "c.csv")], capsys)
    same = {"names": (a, b), "iou_thresholds": thresholds, "draws": 40}
    expected = compare_results(indexed(content), results, results[::2], ["bbox"], **same)
    assert (tmp_path / "c.csv").read_text() == comparison_csv(expected)
    assert list(expected.metrics["bbox"])[:3] == ["AP", "AP40", "AP50"]
    for name, difference in expected.metrics["bbox"].items():
        if difference.a is not None:
            assert f"| {name:<13} | {difference.a:.3f} | {difference.b:.3f} |" in text


@pytest.mark.parametrize("count", [1, 3, 4, 100])
def test_the_first_images_are_a_data_set_of_their_own(
    count: int, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content, results = random_data(3)
    alone = {
        **content,
        "images": content["images"][:count],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] < count],
    }
    expected = evaluate_results(indexed(alone), [row for row in results if row["image_id"] < count], KINDS)
    content["images"] = content["images"][::-1]
    coco = indexed(content)
    first = first_images(coco, count)
    assert evaluate_results(first, results_of(results, coco, first), KINDS) == expected
    assert json.loads(shown([*files, "--json", "--limit", str(count), "--kinds", *KINDS], capsys)) == expected
    assert first_images(coco, None) is coco


def test_a_detector_runs_on_the_first_images(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def predict(model: object, batches: Any, *args: object, **options: object) -> list[Any]:
        seen.extend(target["image_id"] for _, targets in batches for target in targets)
        return []

    class Labels:
        pass

    monkeypatch.setattr("norton_det.cli.eval_det._read_detector", lambda args, path, data: (None, Labels()))
    monkeypatch.setattr("norton_det.cli.eval_det.predict", predict)
    words = ["--checkpoint", "x", "--data-path", str(shapes), "-j", "0", "--device", "cpu", "--kinds", "bbox"]
    shown([*words, "--limit", "2"], capsys)
    assert seen == [1, 2]
