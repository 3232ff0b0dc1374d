"""What is read from matched detections: laws on random data, cases worked by hand, and another program's figures."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.faults.random_coco import indexed, random_data
from norton_det.errors import UsageError
from norton_det.evaluation.at_threshold import confusion_matrix, errors_by_image, found_by_size
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.error_split import KINDS, ErrorSplit, dict_of, split_errors
from norton_det.evaluation.matches import Matches, match_results
from norton_det.evaluation.precision_recall import average_precision, best_thresholds, class_curves, curve

SEEDS = [range(12), pytest.param(range(12, 200), marks=pytest.mark.slow)]
REGIONS = ("bbox", "segm")


def matched(seed: int, kind: str, minimum: float = 0) -> Matches:
    content, results = random_data(seed)
    kept = [result for result in results if result["score"] >= minimum]
    return match_results(CocoEvaluator(indexed(content), [kind]), kept, kind)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_split_explains_the_ap50(seeds: range) -> None:
    kinds_seen = set()
    for seed in seeds:
        content, results = random_data(seed)
        evaluator = CocoEvaluator(indexed(content), REGIONS)
        metrics = evaluator.evaluate(results)
        for kind in REGIONS:
            matches = match_results(evaluator, results, kind)
            split = split_errors(matches)
            assert split.ap == pytest.approx(metrics[kind]["AP50"])
            assert sum(split.counts[name] for name in KINDS[:-1]) == np.count_nonzero(~matches.hits)
            assert split.counts["missed"] <= matches.objects.sum() - matches.hits.sum()
            assert all(cost is None or cost > -1e-12 for cost in split.costs.values())
            assert all(split.counts[name] or not cost for name, cost in split.costs.items())
            kinds_seen |= {name for name, count in split.counts.items() if count}
    assert kinds_seen == set(KINDS)


@pytest.mark.parametrize("seeds", SEEDS)
def test_another_program_splits_alike(seeds: range) -> None:
    """It lets errors of classification and of localisation about one object compete, and ours do so among themselves.

    A class whose objects are all missed ones has an AP of 0 there; here it is out of the mean if nothing is detected.
    """
    hotcoco = pytest.importorskip("hotcoco")
    codes = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    compared = 0
    for seed in seeds:
        content, results = random_data(seed)
        content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]  # it explains those in crowds
        rows = [
            {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": score}
            for row, score in ((row, row["score"] + 1e-6 * i) for i, row in enumerate(results))  # no equal ones
        ]
        split = split_errors(match_results(CocoEvaluator(indexed(content), ["bbox"]), rows, "bbox"))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = hotcoco.COCO(content)
            other = hotcoco.COCOeval(truth, truth.loadRes(rows), "bbox")
            other.evaluate()
            theirs = other.tide_errors()
        assert split.counts == {name: theirs["counts"][code] for name, code in codes.items()}
        if split.ap is None:
            continue
        assert split.ap == pytest.approx(theirs["ap_base"])
        gains = {name: theirs["delta_ap"][code] for name, code in codes.items()}
        assert all(split.costs[name] > gain - 1e-9 for name, gain in gains.items())
        compete = split.counts["classification"] and split.counts["localisation"]
        for name in KINDS[2:5] if compete else KINDS[:5]:
            assert split.costs[name] == pytest.approx(gains[name], abs=1e-9)
            compared += split.costs[name] > 0
    assert compared > len(seeds)


def one_image(objects: list[tuple[int, list[float]]], found: list[tuple[int, list[float], float]]) -> ErrorSplit:
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (label, box) in enumerate(objects)
    ]
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "1.png", "width": 300, "height": 100}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    results = [{"image_id": 1, "category_id": label, "bbox": box, "score": score} for label, box, score in found]
    return split_errors(match_results(CocoEvaluator(indexed(content), ["bbox"]), results, "bbox"))


A, B = [0.0, 0.0, 40.0, 40.0], [100.0, 0.0, 40.0, 40.0]
FAR = [200.0, 50.0, 40.0, 40.0]
HALF_OF_LEVELS = 51 / 101  # recalls 0 to 0.5


@pytest.mark.parametrize(
    ("objects", "found", "ap", "counts", "costs"),
    [
        # One class is found, the other one is taken for it: with its right class, AP is 1.
        ([(1, A), (2, B)], [(1, A, 0.9), (1, B, 0.7)], 0.5, {"classification": 1}, {"classification": 0.5}),
        # Of two detections about one object the surer one is corrected: precision 1 up to recall 1.
        (
            [(1, A), (1, B)],
            [(1, A, 0.9), (1, [100, 0, 15, 40], 0.8), (1, [100, 0, 10, 40], 0.7)],
            HALF_OF_LEVELS,
            {"localisation": 2},
            {"localisation": 1 - HALF_OF_LEVELS},
        ),
        # A false alarm above the only hit: precision 1/2 up to recall 1/2.
        (
            [(1, A), (1, B)],
            [(1, FAR, 0.95), (1, A, 0.9)],
            HALF_OF_LEVELS / 2,
            {"background": 1, "missed": 1},
            {"background": HALF_OF_LEVELS / 2, "missed": 0.5 - HALF_OF_LEVELS / 2},
        ),
        # A second detection between two hits: precision 2/3 beyond recall 1/2.
        (
            [(1, A), (1, B)],
            [(1, A, 0.9), (1, A, 0.8), (1, B, 0.7)],
            HALF_OF_LEVELS + 50 / 101 * 2 / 3,
            {"duplicate": 1},
            {"duplicate": 50 / 101 / 3},
        ),
        # Neither class nor place is right. Without its missed object, class b has no part in the mean.
        (
            [(1, A), (2, B)],
            [(1, A, 0.9), (1, [100, 0, 12, 40], 0.95)],
            0.25,
            {"both": 1, "missed": 1},
            {"both": 0.25, "missed": 0.25},
        ),
        # Nothing is detected: what is missed is out of the count, and so is its class.
        ([(1, A), (2, B)], [(1, A, 0.9)], 0.5, {"missed": 1}, {"missed": 0.5}),
        ([(1, A)], [], 0.0, {"missed": 1}, {"missed": None}),
        ([], [(1, A, 0.9)], None, {"background": 1}, dict.fromkeys(KINDS)),
    ],
)
def test_cases_worked_by_hand(
    objects: Any, found: Any, ap: float | None, counts: dict[str, int], costs: dict[str, float | None]
) -> None:
    split = one_image(objects, found)
    assert split.ap == (None if ap is None else pytest.approx(ap))
    assert dict(split.counts) == dict.fromkeys(KINDS, 0) | counts
    expected = {name: costs.get(name, 0.0) for name in KINDS}
    assert dict(split.costs) == {name: None if cost is None else pytest.approx(cost) for name, cost in expected.items()}
    assert dict_of(split)["dAP"] == dict(split.costs)


def test_keypoints_have_no_split() -> None:
    with pytest.raises(UsageError, match="kind is keypoints; the error split is that of bbox or segm"):
        split_errors(matched(0, "keypoints"))


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 100), marks=pytest.mark.slow)])
def test_the_best_threshold_is_that_of_all_that_can_be_tried(seeds: range) -> None:
    """Each threshold is tried on the results above it alone, matched anew."""
    for seed in seeds:
        for kind in ("bbox", "keypoints"):
            matches = matched(seed, kind)
            best, of_classes = best_thresholds(matches)
            if not matches.objects.sum():
                assert best.f1 is None
                continue
            f1 = {}
            for threshold in sorted(set(matches.scores.tolist()), reverse=True):
                again = matched(seed, kind, threshold)
                found, count, objects = again.hits.sum(), len(again.scores), again.objects.sum()
                f1[threshold] = 2 * found / (count + objects)
            assert best.f1 == pytest.approx(max(f1.values()))
            assert f1[best.threshold] == pytest.approx(best.f1)
            assert all(f1[threshold] < best.f1 - 1e-12 for threshold in f1 if threshold > best.threshold)
            assert list(of_classes) == ["class 1", "class 2", "class 3", "class 4"]
            assert of_classes["class 4"].f1 is None


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 2.0])
def test_what_is_found_at_a_threshold_adds_up(threshold: float) -> None:
    others = 0
    for seed in range(8):
        for kind in ("bbox", "segm", "keypoints"):
            matches = matched(seed, kind)
            above = matches.scores >= threshold
            hits = int((matches.hits & above).sum())
            matrix = confusion_matrix(matches, threshold)
            assert (matrix >= 0).all()
            assert matrix[:-1].sum(1).tolist() == matches.objects.tolist()
            assert matrix[:, :-1].sum(0).tolist() == np.bincount(matches.labels[above], minlength=4).tolist()
            assert matrix.trace() == hits
            others += matrix[:-1, :-1].sum() - hits
            groups = found_by_size(matches, threshold)
            assert sum(group.objects for group in groups) == matches.objects.sum()
            assert sum(group.found for group in groups) == hits
            rows = errors_by_image(matches, threshold)
            assert sum(row.found for row in rows) == hits
            assert sum(row.missed for row in rows) == matches.objects.sum() - hits
            assert sum(row.false_alarms for row in rows) == above.sum() - hits
            assert [row.error for row in rows] == sorted((row.error for row in rows), reverse=True)
    assert bool(others) == (threshold < 1), "classes are confused"


SCORES = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.5, 0.7, 0.9]), st.booleans()), max_size=12)


@given(SCORES, st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_curves(rows: list[tuple[float, bool]], missed: int) -> None:
    scores = np.array([score for score, _ in rows], float)
    hits = np.array([hit for _, hit in rows], bool)
    objects = int(hits.sum()) + missed
    one = curve(scores, hits, objects)
    assert one.scores.tolist() == sorted(set(scores.tolist()), reverse=True)
    for threshold, precision, recall in zip(one.scores, one.precision, one.recall, strict=True):
        above = scores >= threshold
        assert precision == pytest.approx(hits[above].mean())
        assert np.isnan(recall) if not objects else recall == pytest.approx(hits[above].sum() / objects)
    if objects:
        assert 0 <= average_precision(scores, hits, objects) <= 1
        assert average_precision(scores[hits], hits[hits], objects) >= average_precision(scores, hits, objects)


def test_curves_of_classes_are_those_of_their_detections() -> None:
    matches = matched(3, "bbox")
    curves = class_curves(matches)
    assert sum(one.objects for one in curves.values()) == matches.objects.sum()
    for k, one in enumerate(curves.values()):
        assert one.recall.tolist() == sorted(one.recall.tolist()) or not matches.objects[k]
