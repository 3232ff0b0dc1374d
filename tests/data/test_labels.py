"""The labels of detectors correspond with category ids by the names of the classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.data import CocoDataset
from norton_det.data.coco.checks import check_annotations
from norton_det.data.coco.labels import BACKGROUND, Labels
from norton_det.errors import DataError
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.spec import UNUSED, Spec

FASTER, KEYPOINT = "fasterrcnn_cpresnet50_fpn", "keypointrcnn_cpresnet50_fpn"
Categories = list[dict[str, Any]]


def spec_of(classes: tuple[str, ...], arch: str = FASTER, **fields: Any) -> Spec:
    return Spec(arch, len(classes), classes=classes, **fields)


def matched(spec: Spec, categories: Categories) -> Labels:
    return Labels.match(spec, categories, detector="d.safetensors", data="val.json")


names = st.lists(st.text(max_size=4) | st.sampled_from(["cell", UNUSED, BACKGROUND]), min_size=1, max_size=6)
ids = st.integers(-5, 10**9)


@st.composite
def categories(draw: st.DrawFn) -> Categories:
    """Return categories with any ids and names, the latter not always distinct or present."""
    chosen = draw(names)
    numbers = draw(st.lists(ids, min_size=len(chosen), max_size=len(chosen), unique=True))
    entries = [{"id": number, "name": name} for number, name in zip(numbers, chosen, strict=True)]
    for entry in entries:
        if draw(st.booleans()) and draw(st.booleans()):
            del entry["name"]
    return entries


@settings(deadline=None)  # machines are slow at times
@given(categories())
def test_new_labels_are_1_to_n_in_the_order_of_the_ids(entries: Categories) -> None:
    labels = Labels.new(entries)
    numbers = [entry["id"] for entry in entries if entry.get("name") != BACKGROUND]
    assert labels.ids == dict(enumerate(sorted(numbers), start=1))
    assert len(set(labels.classes)) == len(labels.classes) == len(numbers) + 1
    assert matched(spec_of(labels.classes), entries) == labels
    assert [labels.ids[label] for label in labels.of([{"category_id": n} for n in numbers]).tolist()] == numbers


def test_a_name_that_is_null_is_missing() -> None:
    entries = [{"id": 1, "name": None}, {"id": 2, "name": "a"}, {"id": 3, "name": None}]
    assert Labels.new(entries).classes == (BACKGROUND, "1", "a", "3")


def test_the_background_among_the_categories_is_no_class(shapes: Path, tmp_path: Path, refused: Refused) -> None:
    entries = [{"id": 0, "name": BACKGROUND}, {"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    labels = Labels.new(entries)
    assert (labels.classes, labels.ids) == ((BACKGROUND, "a", "b"), {1: 1, 2: 2})
    assert matched(spec_of(labels.classes), entries[1:]) == matched(spec_of(labels.classes), entries) == labels
    assert matched(Spec(FASTER, 3), entries).ids == labels.ids

    path = shapes / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    expected = CocoDataset(shapes, "val").labels
    results = [{**a, "score": 1.0} for a in content["annotations"]]
    content["categories"].insert(0, entries[0])
    changed = tmp_path / "val.json"

    def read() -> CocoDataset:
        changed.write_text(json.dumps(content))
        return CocoDataset(shapes, "val", annotations=changed)

    assert read().labels == expected
    assert not [f for f in check_annotations(content, num_classes=4) if "categor" in f.check]
    metrics = CocoEvaluator(read().coco, ["bbox"]).evaluate(results, per_class=True)["bbox"]
    assert list(metrics["classes"]) == list(expected.classes[1:])
    content["annotations"][0]["category_id"] = 0
    message = f"{changed}: objects of the background: annotation {content['annotations'][0]['id']}: category_id 0"
    refused(read, 3, message)


@settings(deadline=None)  # machines are slow at times
@given(st.lists(st.text(max_size=4), min_size=1, max_size=6, unique=True), st.data())
def test_a_class_is_matched_with_the_category_of_its_name(classes: list[str], data: st.DataObject) -> None:
    """Whatever the ids and the order of the categories, and whichever of the classes the data has."""
    spec = spec_of((BACKGROUND, *data.draw(st.permutations([*classes, UNUSED, UNUSED]))))
    subset = data.draw(st.lists(st.sampled_from(classes), min_size=1, unique=True))
    numbers = data.draw(st.lists(ids, min_size=len(subset), max_size=len(subset), unique=True))
    entries = [{"id": number, "name": name} for number, name in zip(numbers, subset, strict=True)]
    labels = matched(spec, entries)
    assert {labels.classes[label]: number for label, number in labels.ids.items()} == dict(
        zip(subset, numbers, strict=True)
    )


def test_what_a_detector_lacks_is_listed_with_what_resembles_it() -> None:
    entries = [{"id": n, "name": name} for n, name in enumerate(["cat", "Traffic  light", "dogs", "zebra"])]
    with pytest.raises(DataError) as caught:
        matched(spec_of((BACKGROUND, "cat", "traffic light", "dog")), entries)
    assert str(caught.value) == (
        "val.json: has classes that d.safetensors lacks: 'Traffic  light' (id 1; similar: 'traffic light'), "
        "'dogs' (id 2; similar: 'dog'), 'zebra' (id 3)"
    )


def test_a_detector_without_names_has_category_ids_as_labels(caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"id": 3, "name": "c"}, {"id": 1, "name": "a"}]
    labels = matched(Spec(FASTER, 5), entries)
    assert (labels.ids, labels.classes) == ({3: 3, 1: 1}, (BACKGROUND, "a", UNUSED, "c", UNUSED))
    assert "d.safetensors: does not name its classes; its labels are taken for the category ids of val.json" in (
        caplog.text
    )
    for number in (0, 5, -1, "1"):
        with pytest.raises(DataError, match=rf"lacks: 'x' \(id {number}\); it does not name its classes, .* 1 to 4"):
            matched(Spec(FASTER, 5), [{"id": number, "name": "x"}])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (spec_of((BACKGROUND, "a"), KEYPOINT, keypoints=("left", "top")), "d.safetensors has left, top"),
        (spec_of((BACKGROUND, "a"), KEYPOINT), "d.safetensors has 17"),
        (Spec(KEYPOINT, 2, options={"num_keypoints": 3}), "d.safetensors has 3"),
    ],
)
def test_other_keypoints_are_refused(spec: Spec, expected: str) -> None:
    with pytest.raises(DataError, match=f"val.json: has the keypoints top, left; {expected}"):
        matched(spec, [{"id": 1, "name": "a", "keypoints": ["top", "left"]}])


def test_keypoints_are_named(caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"id": 1, "name": "a", "keypoints": ["top", "left"]}]
    assert matched(Spec(KEYPOINT, 2, options={"num_keypoints": 2}), entries).keypoints == ("top", "left")
    assert matched(spec_of((BACKGROUND, "a")), entries).keypoints == (), "no keypoints are detected"
    assert matched(spec_of((BACKGROUND, "a"), KEYPOINT, keypoints=("x",)), [{"id": 1, "name": "a"}]).keypoints == ("x",)


def test_predictions_of_other_classes_are_left_out() -> None:
    labels = matched(spec_of((BACKGROUND, "a", "b", "c")), [{"id": 9, "name": "c"}, {"id": 4, "name": "a"}])
    prediction = {"labels": torch.tensor([2, 3, 1, 2]), "scores": torch.arange(4.0)}
    selected = labels.select(prediction)
    assert (selected["labels"].tolist(), selected["scores"].tolist()) == ([3, 1], [1, 2])
    assert labels.select({"labels": torch.zeros(0, dtype=torch.int64)})["labels"].shape == (0,)


def test_names_that_stay_equal_are_refused() -> None:
    entries = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}, {"id": 3, "name": "a (id 1)"}]
    with pytest.raises(DataError, match="expected distinct names"):
        Labels.new(entries)


def test_targets_have_the_labels_of_the_detector(shapes: Path, refused: Refused) -> None:
    data, again = (CocoDataset(shapes, "train", train=True) for _ in range(2))
    again.match(spec_of((BACKGROUND, "triangle", "x", "circle", "square")), "d.safetensors")
    classes = [{data.labels.classes[n] for n in target["labels"].tolist()} for _, target in data]
    assert classes == [{again.labels.classes[n] for n in target["labels"].tolist()} for _, target in again]
    assert data.num_classes == 4
    path = shapes / "annotations" / "instances_train2017.json"
    refused(lambda: data.match(spec_of((BACKGROUND, "circle")), "d"), 3, f"{path}: has classes", "'square' (id 2)")
    assert json.loads(path.read_text())["categories"][1]["name"] == "square"
