"""The folders that people have or export are read without a renamed file, and all give the same data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.cli import visualize
from norton_det.cli.common import Parser
from norton_det.data import CocoDataset, find_split
from norton_det.data.calibration_set import read_calibration_set
from norton_det.data.coco.dataset import read_coco
from norton_det.data.coco.held_out import HeldOut
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.matches import match_results

Content = dict[str, Any]


def annotations_of(shapes: Path, split: str, kind: str = "instances") -> Content:
    content: Content = json.loads((shapes / "annotations" / f"{kind}_{split}2017.json").read_text())
    return content


def put(
    shapes: Path, split: str, images: Path, annotations: Path, change: Callable[[Content], None] | None = None
) -> None:
    """Copy a split of the generated data to other places."""
    shutil.copytree(shapes / f"{split}2017", images, dirs_exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    content = annotations_of(shapes, split)
    if change:
        change(content)
    annotations.write_text(json.dumps(content))


def with_group(content: Content) -> None:
    """Add the category that Roboflow writes before the classes, and begin with id 0."""
    for category in content["categories"]:
        category["supercategory"] = "shapes"
    content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})


def in_images(content: Content) -> None:
    """Name files as Label Studio does, and begin with id 0."""
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    for category in content["categories"]:
        category["id"] -= 1
    for annotation in content["annotations"]:
        annotation["category_id"] -= 1


def coco_2014(shapes: Path, root: Path) -> None:
    for split in ("train", "val"):
        put(shapes, split, root / f"{split}2014", root / "annotations" / f"instances_{split}2014.json")


def coco_without_year(shapes: Path, root: Path) -> None:
    for split in ("train", "val"):
        put(shapes, split, root / split, root / "annotations" / f"instances_{split}.json")


def coco_in_images(shapes: Path, root: Path) -> None:
    for split in ("train", "val"):
        put(shapes, split, root / "images" / f"{split}2017", root / "annotations" / f"instances_{split}2017.json")


def roboflow(shapes: Path, root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid"), ("val", "test")):
        put(shapes, split, root / folder, root / folder / "_annotations.coco.json", with_group)


def cvat_subsets(shapes: Path, root: Path) -> None:
    for split, name in (("train", "Train"), ("val", "Validation")):
        put(shapes, split, root / "images" / name, root / "annotations" / f"instances_{name}.json")


DIVIDED = {"COCO": (coco_2014, coco_without_year, coco_in_images), "Roboflow": (roboflow,), "CVAT": (cvat_subsets,)}


def cvat(shapes: Path, root: Path) -> None:
    put(shapes, "train", root / "images" / "default", root / "annotations" / "instances_default.json")


def old_cvat(shapes: Path, root: Path) -> None:
    put(shapes, "train", root / "images", root / "annotations" / "instances_default.json")


def label_studio(shapes: Path, root: Path) -> None:
    put(shapes, "train", root / "images", root / "result.json", in_images)


def old_label_studio(shapes: Path, root: Path) -> None:
    put(shapes, "train", root / "images", root / "result.json")


UNDIVIDED = {"CVAT": (cvat, old_cvat), "Label Studio": (label_studio, old_label_studio)}


def assert_equal(found: CocoDataset, expected: CocoDataset) -> None:
    assert len(found) == len(expected)
    assert found.labels.classes == expected.labels.classes
    for (image, target), (other, truth) in zip(found, expected, strict=True):
        assert torch.equal(image, other)
        assert all(torch.equal(target[name], truth[name]) for name in ("boxes", "labels", "area"))


@pytest.mark.parametrize(("name", "lay"), [(name, lay) for name, lays in DIVIDED.items() for lay in lays])
def test_divided_layouts_are_read_and_named(
    name: str, lay: Callable[[Path, Path], None], shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(shapes, tmp_path)
    for split in ("train", "val"):
        caplog.clear()
        data = CocoDataset(tmp_path, split, train=split == "train")
        assert_equal(data, CocoDataset(shapes, split, train=split == "train"))
        assert f"{tmp_path}: {name} layout: {data.annotations}, images in {data.folder}" in caplog.text
    assert tool("check_data").main(["--data-path", str(tmp_path)]) == 0


@pytest.mark.parametrize(("name", "lay"), [(name, lay) for name, lays in UNDIVIDED.items() for lay in lays])
def test_undivided_layouts_need_a_fraction(
    name: str,
    lay: Callable[[Path, Path], None],
    shapes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    refused: Refused,
) -> None:
    lay(shapes, tmp_path)
    assert_equal(CocoDataset(tmp_path, "train"), CocoDataset(shapes, "train"))
    assert f"{tmp_path}: {name} layout: " in caplog.text
    refused(lambda: CocoDataset(tmp_path, "val"), 3, "is not divided and there is no validation set; expected --val-f")
    train, val = (CocoDataset(tmp_path, split, val_fraction=0.34) for split in ("train", "val"))
    assert "2 of 6 images are held out for validation (fraction 0.34, seed 0)" in caplog.text
    assert (len(train), len(val)) == (4, 2)
    assert sorted(train.ids + val.ids) == CocoDataset(shapes, "train").ids
    assert {a["image_id"] for a in val.coco.dataset["annotations"]} <= set(val.ids), (
        "the evaluation sees no other images"
    )
    assert tool("check_data").main(["--data-path", str(tmp_path)]) == 0


@pytest.mark.parametrize("lay", [lay for lays in (DIVIDED | UNDIVIDED).values() for lay in lays])
def test_calibration_images_are_the_training_images(
    lay: Callable[[Path, Path], None], shapes: Path, tmp_path: Path
) -> None:
    def sums(root: Path, **division: Any) -> list[float]:
        images = read_calibration_set(root, "fasterrcnn_cpresnet50_fpn", 6, **division)
        return sorted(float(image.double().sum()) for image in images)

    lay(shapes, tmp_path)
    assert sums(tmp_path) == sums(shapes)
    if lay in (cvat, old_cvat, label_studio, old_label_studio):
        val = CocoDataset(tmp_path, "val", val_fraction=0.34)
        held_out = {float(image.double().sum()) for image, _ in val}
        assert set(sums(tmp_path, val_fraction=0.34)) == set(sums(shapes)) - held_out
        assert len(held_out) == 2


@pytest.mark.parametrize("lay", [coco_2014, roboflow, label_studio])
def test_visualize_finds_the_validation_images(
    lay: Callable[[Path, Path], None], shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    lay(shapes, tmp_path)
    division = ["--val-fraction", "0.34"] if lay is label_studio else []
    words = ["--checkpoint", "x", "--output", "y"]
    parser = Parser()
    visualize.add_arguments(parser)
    args = parser.parse_args([*words, "--data-path", str(tmp_path), *division])
    visualize.set_input(args)
    data = CocoDataset(tmp_path, "val", val_fraction=0.34 if division else None)
    assert args.annotations == data.annotations
    assert args.input == sorted(data.folder / data.coco.imgs[i]["file_name"] for i in data.ids)
    for both in ([], ["--data-path", "a", "--input", "b"]):
        wrong = parser.parse_args([*words, *both])
        refused(lambda wrong=wrong: visualize.set_input(wrong), 2, "--input and --data-path: expected one of the two")


def test_what_cannot_be_told_is_refused_by_name(shapes: Path, tmp_path: Path, refused: Refused) -> None:
    refused(lambda: find_split(tmp_path / "none", "train"), 3, "none: no such folder")
    refused(lambda: find_split(tmp_path, "train"), 3, "train/_annotations.coco.json (Roboflow)", "result.json (Label")
    coco_2014(shapes, tmp_path)
    assert find_split(tmp_path, "train").images == tmp_path / "train2014"
    put(shapes, "train", tmp_path / "train2017", tmp_path / "annotations" / "instances_train2017.json")
    both = ("several sets of images for train: ", "train2014 (COCO); ", "train2017 (COCO)")
    refused(lambda: find_split(tmp_path, "train"), 3, *both)
    shutil.rmtree(tmp_path / "train2017")
    assert find_split(tmp_path, "train").images == tmp_path / "train2014", "annotations alone are no data set"
    refused(
        lambda: find_split(tmp_path, "val", val_fraction=0.5), 3, "has a validation set, ", "expected no --val-fraction"
    )
    shutil.rmtree(tmp_path / "val2014")
    refused(lambda: CocoDataset(tmp_path, "val"), 3, "val2014: no such folder; expected the images of ")
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(UsageError, match="expected a number between 0 and 1"):
            HeldOut(fraction, 0, held_out=True)


def test_a_group_without_objects_is_evaluated_nowhere(shapes: Path, tmp_path: Path) -> None:
    roboflow(shapes, tmp_path)
    names = {"circle", "square", "triangle"}
    found = find_split(tmp_path, "val")
    for coco in (CocoDataset(tmp_path, "val").coco, read_coco(found.annotations)):
        results = [{**one, "score": 0.5} for one in coco.dataset["annotations"]]
        matches = match_results(CocoEvaluator(coco, ["bbox"]), results, "bbox")
        assert set(matches.classes) == {category["name"] for category in coco.cats.values()} == names


def test_a_group_with_objects_is_a_class(shapes: Path, tmp_path: Path) -> None:
    def change(content: Content) -> None:
        with_group(content)
        content["annotations"][0]["category_id"] = 0

    put(shapes, "train", tmp_path / "train", tmp_path / "train" / "_annotations.coco.json", change)
    assert CocoDataset(tmp_path, "train").labels.classes[1] == "shapes"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=2, max_size=40, unique=True),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_a_division_is_one(names: list[tuple[int, int]], fraction: float, seed: int, random: Any) -> None:
    """Every image is in one part, also in another order with other ids, and copies of an image are together."""
    images = [{"id": i, "file_name": f"{source}_jpg.rf.{copy}.jpg"} for i, (source, copy) in enumerate(names)]
    annotations = [{"id": i, "image_id": i, "category_id": 1} for i in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": []}
    parts = [HeldOut(fraction, seed, held_out) for held_out in (False, True)]
    if len({source for source, _ in names}) == 1:
        with pytest.raises(DataError, match="expected more"):
            parts[0].of(content, "x.json")
        return
    train, val = (part.of(content, "x.json") for part in parts)
    files = [{image["file_name"] for image in part["images"]} for part in (train, val)]
    assert files[0] | files[1] == {image["file_name"] for image in images}
    assert not {name.split(".rf.")[0] for name in files[0]} & {name.split(".rf.")[0] for name in files[1]}
    for part in (train, val):
        ids = [image["id"] for image in part["images"]]
        assert [a["image_id"] for a in part["annotations"]] == ids
    assert files[0]
    assert (
        len(files[1]) >= max(1, round(fraction * len(images))) or len({name.split(".rf.")[0] for name in files[0]}) == 1
    )
    shuffled = [{**image, "id": 100 - image["id"]} for image in images]
    random.shuffle(shuffled)
    again = parts[1].of({**content, "images": shuffled, "annotations": []}, "x.json")
    assert {image["file_name"] for image in again["images"]} == files[1]
