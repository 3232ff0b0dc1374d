"""Two detectors compared: a draw is the data set that it stands for, and an interval that of all draws."""

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Refused, fill, tool
from hypothesis import given, settings
from hypothesis import strategies as st

import norton_det as nd
from benchmarks.faults.random_coco import indexed, random_data, reference
from norton_det.builders import make_detector
from norton_det.data import CocoDataset
from norton_det.evaluation import bootstrap
from norton_det.evaluation.bootstrap import MatchedResults, draw_images
from norton_det.evaluation.coco import CLASSES, METRICS, CocoEvaluator, evaluate_results
from norton_det.evaluation.coco_results import RESULTS_FILE
from norton_det.evaluation.compare import Difference, compare_results, format_comparison

KINDS = ["bbox", "segm", "keypoints"]
CLASSES_OF_SHAPES = ("__background__", "circle", "square", "triangle")
Content = dict[str, Any]
Rows = list[dict[str, Any]]


def repeated(content: Content, results: Rows, counts: list[int]) -> tuple[Content, Rows]:
    """Return a data set in which each image comes as often as it is counted, under new ids, and its results."""
    old = [image for image, count in zip(content["images"], counts, strict=True) for _ in range(count)]
    images = [{**image, "id": i} for i, image in enumerate(old)]
    annotations, found = (
        [{**row, "image_id": i} for i, image in enumerate(old) for row in rows if row["image_id"] == image["id"]]
        for rows in (content["annotations"], results)
    )
    numbered = [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]
    return {**content, "images": images, "annotations": numbered}, found


def only(results: Rows, field: str) -> Rows:
    return [{name: row[name] for name in ("image_id", "category_id", "score", field)} for row in results]


def drawn(content: Content, results: Rows, kind: str, counts: torch.Tensor, limit: int | None = None) -> torch.Tensor:
    evaluator = CocoEvaluator(indexed(content), [kind], max_detections=limit)
    return MatchedResults(evaluator.match(results, kind), evaluator.lines(kind)).average_precisions(counts)


def plain(value: torch.Tensor) -> float | None:
    return None if value.isnan() else pytest.approx(value.item(), abs=1e-12)


COUNTS = st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any)


@pytest.mark.parametrize(
    "examples", [pytest.param(12, id="quick"), pytest.param(150, id="sweep", marks=pytest.mark.slow)]
)
def test_a_draw_is_the_data_set_with_repeated_images(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 500), counts=COUNTS)
    def check(seed: int, counts: list[int]) -> None:
        content, results = random_data(seed)
        many = repeated(content, results, counts)
        ours = evaluate_results(indexed(many[0]), many[1], KINDS, per_class=True)
        for kind in KINDS:
            figures = drawn(content, results, kind, torch.tensor(counts)[:, None])[:, :, 0]
            lines = [name for name in METRICS[kind] if name.startswith("AP")]
            assert [plain(value) for value in figures.nanmean(1)] == reference(*many, kind)[: len(lines)]
            for k, metrics in enumerate(ours[kind][CLASSES].values()):
                assert [plain(value) for value in figures[:, k]] == [metrics[name] for name in lines]

    check()


def test_copies_of_equal_scores_alternate() -> None:
    """One image counted twice with a hit and a false alarm of one score: hit, false, hit, false, worked out by hand."""
    content, _ = random_data(0)
    box = {"image_id": 0, "category_id": 1, "bbox": [10.0, 10.0, 50.0, 50.0]}
    content = {**content, "annotations": [{**box, "id": 1, "area": 2500.0}]}
    results = [{**box, "score": 0.5}, {**box, "bbox": [90.0, 90.0, 50.0, 50.0], "score": 0.5}]
    figures = drawn(content, results, "bbox", torch.tensor([[1, 2, 0], [1, 0, 4], [1, 1, 0], [1, 1, 0]]))[0, 0]
    torch.testing.assert_close(
        figures, torch.tensor([1, (51 + 50 * 2 / 3) / 101, torch.nan], dtype=torch.float64), equal_nan=True
    )


@pytest.mark.parametrize("limit", [None, 11])
def test_the_limit_of_detections_holds(limit: int | None) -> None:
    content, _ = random_data(0)
    boxes = [[10.0 * i, 0.0, 9.0, 9.0] for i in range(15)]
    content["annotations"] = [
        {"id": i, "image_id": 0, "category_id": 1, "bbox": box, "area": 81.0} for i, box in enumerate(boxes, start=1)
    ]
    results = [{**annotation, "score": 0.5} for annotation in content["annotations"]]
    comparison = compare_results(indexed(content), results, results[:5], ["bbox"], max_detections=limit, draws=40)
    expected = evaluate_results(indexed(content), results, ["bbox"], max_detections=limit)["bbox"]["AP"]
    assert comparison.metrics["bbox"]["AP"].a == pytest.approx(expected)
    assert (expected < 0.8) == (limit == 11)
    assert comparison.max_detections == limit


def test_an_interval_is_that_of_the_draws() -> None:
    """The bootstrap by hand: each drawn data set is built and evaluated, for both detectors."""
    content, a = random_data(3)
    b = [row for row in a if row["score"] > 0.3]
    counts = draw_images(4, 40, seed=5)
    differences = []
    for column in counts.T.tolist():
        first, second = (
            evaluate_results(indexed(many), found, ["bbox"])["bbox"]["AP"]
            for many, found in (repeated(content, rows, column) for rows in (a, b))
        )
        differences.append(second - first)
    metrics = compare_results(indexed(content), a, b, ["bbox"], draws=40, seed=5).metrics["bbox"]
    assert metrics["AP"].difference == pytest.approx(differences[0])
    assert metrics["AP"].interval == pytest.approx(np.percentile(differences[1:], [2.5, 97.5]))
    assert metrics["AP"].draws == 40
    assert metrics["AP"].interval[0] < metrics["AP"].interval[1]


def test_figures_are_those_of_the_evaluation() -> None:
    (content, a), (_, b) = random_data(1), random_data(2)
    comparison = compare_results(indexed(content), a, b, draws=40)
    first, second = (evaluate_results(indexed(content), rows, KINDS, per_class=True) for rows in (a, b))
    for kind in KINDS:
        for name, difference in comparison.metrics[kind].items():
            assert difference.a == pytest.approx(first[kind][name])
            assert difference.b == pytest.approx(second[kind][name])
        assert list(comparison.classes[kind]) == list(first[kind][CLASSES])
        assert comparison.classes[kind]["class 4"]["AP"] == Difference(None, None, None, None, 0)
    assert comparison.classes["bbox"]["class 2"]["AP50"].a == pytest.approx(first["bbox"][CLASSES]["class 2"]["AP50"])


def test_a_detector_does_not_differ_from_itself() -> None:
    content, results = random_data(1)
    comparison = compare_results(indexed(content), results, copy.deepcopy(results), draws=100)
    found = [d for kind in KINDS for d in comparison.metrics[kind].values() if d.a is not None]
    assert len(found) > 10
    assert {(d.difference, d.interval) for d in found} == {(0.0, (0.0, 0.0))}


def test_the_other_way_round_is_the_opposite_and_the_seed_decides() -> None:
    (content, a), (_, b) = random_data(1), random_data(2)
    coco = indexed(content)
    there, back, again, other = (
        compare_results(coco, *pair, ["bbox"], draws=200, seed=seed)
        for pair, seed in (((a, b), 0), ((b, a), 0), ((a, b), 0), ((a, b), 1))
    )
    assert there == again
    assert there.metrics != other.metrics
    assert there.metrics["bbox"]["AP"].difference != 0
    for name, difference in there.metrics["bbox"].items():
        if difference.interval is None:
            continue
        opposite = back.metrics["bbox"][name]
        low, high = difference.interval
        assert opposite.difference == -difference.difference
        assert opposite.interval == pytest.approx((-high, -low))


def test_rare_classes_have_an_interval_of_the_draws_that_contain_them() -> None:
    content, results = random_data(1)
    place = next(a["image_id"] for a in content["annotations"] if a["category_id"] == 3 and not a["iscrowd"])
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3 or a["image_id"] == place]
    metrics = compare_results(indexed(content), results, [], ["bbox"], draws=100).classes["bbox"]["class 3"]
    assert 40 <= metrics["AP"].draws < 90  # of the draws, (3 / 4) ** 4 lack the image
    assert metrics["AP"].interval is not None
    few = compare_results(indexed(content), results, [], ["bbox"], draws=40)
    assert few.classes["bbox"]["class 3"]["AP"].interval is None
    assert "too few draws" in format_comparison(few, per_class=True)


def test_sums_that_float32_cannot_hold_are_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = random_data(1)
    counts, dtypes = draw_images(4, 20, seed=0), []
    expected = drawn(content, results, "bbox", counts)
    summed = bootstrap.embedding_bag
    monkeypatch.setattr(bootstrap, "embedding_bag", lambda *a, **k: dtypes.append(a[1].dtype) or summed(*a, **k))
    for limit, dtype in ((2**24, torch.float32), (2, torch.float64)):
        dtypes.clear()
        monkeypatch.setattr(bootstrap, "_EXACT", limit)
        torch.testing.assert_close(drawn(content, results, "bbox", counts), expected, rtol=0, atol=0, equal_nan=True)
        assert set(dtypes) == {dtype}


def test_what_cannot_be_compared_is_refused(refused: Refused, caplog: pytest.LogCaptureFixture) -> None:
    content, results = random_data(0)
    coco = indexed(content)
    boxes, points = only(results, "bbox"), only(results, "keypoints")
    names = ("a.json", "b.json")
    message = "no kind of results that both have: a.json has bbox; b.json has keypoints; expected one of bbox, segm"
    refused(lambda: compare_results(coco, boxes, points, names=names), 3, message)
    refused(lambda: compare_results(coco, boxes, [3], names=names), 3, "b.json has none")
    message = "b.json: incomplete results: result 0 has no 'segmentation'"
    refused(lambda: compare_results(coco, results, boxes, ["bbox", "segm"], names=names), 3, message)
    stray = [*results, {**results[0], "image_id": 99}]
    message = f"b.json: results of unknown images: result {len(results)}: image_id 99"
    refused(lambda: compare_results(coco, results, stray, names=names), 3, message)
    refused(lambda: compare_results(coco, results, results, draws=39), 2, "draws is 39; expected at least 40")
    refused(lambda: compare_results(coco, results, results, seed=-1), 2, "seed is -1; expected at least 0")
    refused(lambda: compare_results(coco, results, results, ["box"]), 2, "unknown kind 'box'")
    empty = indexed({**content, "images": [], "annotations": []})
    refused(lambda: compare_results(empty, [], [], annotations="x.json"), 3, "x.json: has no images; expected some")


def test_what_one_side_lacks_is_left_out_and_listed(caplog: pytest.LogCaptureFixture) -> None:
    content, results = random_data(0)
    boxes = only(results, "bbox")
    comparison = compare_results(indexed(content), results, boxes, names=("a.json", "b.json"), draws=40)
    assert list(comparison.metrics) == ["bbox"]
    assert comparison.left_out == {"segm": "a.json", "keypoints": "a.json"}
    assert "Only a.json has segm; it is left out of the comparison." in caplog.text
    nothing = compare_results(indexed(content), results, [], draws=40)  # it detects nothing of any kind
    assert list(nothing.metrics) == KINDS
    assert nothing.left_out == {}
    assert list(compare_results(indexed(content), [], [], draws=40).metrics) == ["bbox"]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_eval_det_compares_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (content, a), (_, b) = random_data(1), random_data(2)
    places = {"TRUTH": content, "A": a, "B": b}
    places = {name: write(tmp_path / f"{name.lower()}.json", value) for name, value in places.items()}
    words = fill(
        ["--annotations", "TRUTH", "--compare", "A", "B", "--draws", "50", "--seed", "3", "--kinds", "bbox"], places
    )
    names = (str(places["A"]), str(places["B"]))
    expected = compare_results(indexed(content), a, b, ["bbox"], names=names, draws=50, seed=3)
    capsys.readouterr()
    assert tool("eval_det").main([*words, "--output", str(tmp_path / "c.json"), "--per-class"]) == 0
    assert capsys.readouterr().out == format_comparison(expected, per_class=True) + "\n"
    assert "AP of class 2" in format_comparison(expected, per_class=True)
    assert "AP of class 2" not in format_comparison(expected)
    written = json.loads((tmp_path / "c.json").read_text())
    assert written == json.loads(json.dumps(asdict(expected)))
    assert written["metrics"]["bbox"]["AP"]["interval"] == [*expected.metrics["bbox"]["AP"].interval]
    assert tool("eval_det").main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two detectors that name the classes of the shapes."""
    folder = tmp_path_factory.mktemp("detectors")
    files = {}
    for kind in ("faster", "mask"):
        net, spec = make_detector(f"{kind}rcnn_cpresnet50_fpn", num_classes=4, box_score_thresh=0.0, **TINY)
        files[kind.upper()] = folder / f"{kind}.safetensors"
        nd.save(net, replace(spec, classes=CLASSES_OF_SHAPES), files[kind.upper()])
    return files


def test_eval_det_compares_detectors(
    detectors: dict[str, Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of Faster and Mask R-CNN, and the results of one of them."""
    faster, mask = detectors["FASTER"], detectors["MASK"]
    common = ["--data-path", str(shapes), "--device", "cpu", "-j", "0", "--json"]
    assert tool("eval_det").main([*common, "--checkpoint", str(mask), "--output-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    for a, b, kinds, left_out in (
        (mask, tmp_path / RESULTS_FILE, {"bbox", "segm"}, {}),
        (faster, mask, {"bbox"}, {"segm": str(mask)}),
    ):
        assert tool("eval_det").main([*common, "--compare", str(a), str(b)]) == 0
        comparison = json.loads(capsys.readouterr().out)
        assert comparison["names"] == [str(a), str(b)]
        assert comparison["metrics"].keys() == kinds
        assert comparison["left_out"] == left_out


class Oracle(torch.nn.Module):
    """Detects a part of what is annotated in the images of a data set, in their order, with labels of its own."""

    def __init__(self, data: CocoDataset, classes: tuple[str, ...], part: float) -> None:
        super().__init__()
        self.answers = iter([self.answer(target, data.labels.classes, classes, part) for _, target in data])

    @staticmethod
    def answer(target: Any, names: tuple[str, ...], classes: tuple[str, ...], part: float) -> dict[str, torch.Tensor]:
        count = math.ceil(part * len(target["labels"]))
        labels = torch.tensor([classes.index(names[label]) for label in target["labels"][:count]])
        return {"boxes": torch.as_tensor(target["boxes"][:count]), "labels": labels, "scores": torch.ones(count)}

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [next(self.answers) for _ in images]


def test_classes_are_matched_by_name(
    shapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each detector has its classes in an order of its own; both detect them."""
    data = CocoDataset(shapes, "val")
    orders = {"a.pth": CLASSES_OF_SHAPES, "b.pth": (CLASSES_OF_SHAPES[0], *CLASSES_OF_SHAPES[:0:-1])}
    parts = {"a.pth": 1.0, "b.pth": 0.5}

    def load(path: str, device: str, **options: object) -> tuple[torch.nn.Module, nd.Spec]:
        spec = nd.Spec("fasterrcnn_cpresnet50_fpn", 4, classes=orders[path])
        return Oracle(data, orders[path], parts[path]), spec

    monkeypatch.setattr("norton_det.cli.eval_det.open_detector", load)
    words = ["--data-path", str(shapes), "--device", "cpu", "-j", "0", "--json", "--compare", *orders]
    assert tool("eval_det").main(words) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["metrics"]["bbox"]["AP"]["a"] == pytest.approx(1)
    assert 0.2 < comparison["metrics"]["bbox"]["AP"]["b"] < 0.9
    assert {*comparison["classes"]["bbox"]} == {*CLASSES_OF_SHAPES[1:]}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--compare FASTER SPOILT", 3, "spoilt.json: results of unknown images: result 0: image_id 99"),
        ("--compare FASTER OUT/none.json", 3, "none.json: no such file; expected a list of COCO results"),
        ("--compare FASTER OUT/none.pth", 3, "none.pth: no such file"),
        ("--compare EMPTY EMPTY --draws 3", 2, "draws is 3; expected at least 40"),
        ("--compare EMPTY EMPTY --backend faster", 2, "--backend faster does not keep what --compare needs"),
        ("--compare EMPTY EMPTY --output-dir OUT", 2, "is not for --compare; expected --output"),
        ("--compare EMPTY EMPTY --output OUT/x.txt", 2, "expected a name that ends with .json"),
        ("--compare EMPTY EMPTY --output OUT/none/x.json", 2, "none does not exist"),
        ("--compare EMPTY", 2, "--compare: expected 2 arguments"),
        ("--compare EMPTY EMPTY --errors", 2, "--errors: is not for --compare; expected --checkpoint or --results"),
        ("--compare EMPTY EMPTY --iou-thresholds 75", 2, "--iou-thresholds is 75; expected a number from 0 to 1"),
        ("--compare EMPTY EMPTY --limit 0", 2, "--limit is 0; expected at least 1"),
        ("--results EMPTY --output OUT/x.txt", 2, "expected a name that ends with .json or .csv or .md"),
        ("--results EMPTY --f1 --backend hotcoco", 2, "--backend hotcoco does not keep what --f1 needs"),
        ("--results EMPTY --errors --kinds keypoints", 2, "--errors: keypoints have no error split"),
    ],
)
def test_eval_det_refuses_before_a_detector_runs(
    words: str,
    code: int,
    message: str,
    detectors: dict[str, Path],
    shapes: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("norton_det.cli.eval_det.predict", lambda *a, **k: pytest.fail("a detector runs"))
    spoilt = [{"image_id": 99, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]
    places = {"SPOILT": write(tmp_path / "spoilt.json", spoilt), "EMPTY": write(tmp_path / "empty.json", [])}
    out = tmp_path / "out"
    out.mkdir()
    line = ["--data-path", str(shapes), "--device", "cpu", "-j", "0"]
    line += fill(words.split(), {**places, **detectors, "OUT": out})
    refused(lambda: tool("eval_det").main(line), code, message, unwritten=out)


def test_eval_det_needs_the_images_of_a_detector(refused: Refused) -> None:
    words = ["--annotations", "x.json", "--compare", "a.json", "b.pth"]
    refused(lambda: tool("eval_det").main(words), 2, "neither --images nor --data-path is given")
