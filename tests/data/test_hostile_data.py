"""Annotations and images from strangers: nothing hangs, fills the memory, leaves the folder or spoils a message."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from norton_det import image_files
from norton_det.data import CocoDataset, annotation_file, make_shapes, read_coco
from norton_det.data.coco.checks import check_annotations, check_images
from norton_det.data.coco.checks.fields import is_text, mask_fault
from norton_det.data.coco.truth import Truth
from norton_det.errors import DataError, shown
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.coco_results import read_results
from norton_det.files import read_json
from norton_det.image_files import read_rgb
from norton_det.visualization.legend import Legend

Content = dict[str, Any]
FIRST = "000000000001.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "shapes", train=2, val=2, size=64)
    return tmp_path / "shapes"


def change(root: Path, make: Callable[[Content], object], dataset: str = "coco") -> None:
    """Change the annotations of both splits."""
    for split in ("train", "val"):
        path = annotation_file(root, split, dataset)
        content = json.loads(path.read_text())
        make(content)
        path.write_text(json.dumps(content))


def read_all(root: Path, split: str, dataset: str = "coco") -> list[Any]:
    data = CocoDataset(root, split, dataset, train=split == "train", masks=True)
    return [data[index] for index in range(len(data))]


def put(path: Path, make: Callable[[Path], object]) -> Path:
    """Put something else in the place of a file."""
    path.unlink()
    make(path)
    return path


ENDLESS = [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir]


@pytest.mark.parametrize("make", ENDLESS, ids=["FIFO", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(root: Path, make: Any, refused: Refused) -> None:
    for split in ("train", "val"):
        path = put(root / f"{split}2017" / FIRST, make)
        refused(lambda split=split: read_all(root, split), 3, str(path))
        content = json.loads(annotation_file(root, split, "coco").read_text())
        assert any(str(path) in finding.examples[0] for finding in check_images(content, path.parent))
    path = put(annotation_file(root, "val", "coco"), make)
    for read in (lambda: CocoDataset(root, "val"), lambda: read_results(path), lambda: Truth(path)):
        refused(read, 3, f"{path}: cannot be read: is no regular file")


def test_paths_and_links_that_leave_the_folder_are_refused_alike(root: Path, refused: Refused) -> None:
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        outside = root / f"{split}.png"
        outside.write_bytes((folder / FIRST).read_bytes())
        for target in (outside, Path("..") / outside.name):
            put(folder / FIRST, lambda path, target=target: path.symlink_to(target))
            refused(lambda split=split: read_all(root, split), 3, f"{folder / FIRST}: is a link to {outside}; expected")
        content = json.loads(annotation_file(root, split, "coco").read_text())
        assert "is a link to" in check_images(content, folder)[0].examples[0]
    for name in ("../val.png", str(root / "val.png"), "a/../../val.png", "C:\\val.png"):
        change(root, lambda content, name=name: content["images"][0].update(file_name=name))
        for split in ("train", "val"):
            path = annotation_file(root, split, "coco")
            message = f"{path}: paths that leave the folder: image 1: file_name is {name!r}"
            refused(lambda split=split: CocoDataset(root, split, train=split == "train"), 3, message)


def test_links_within_the_folder_and_a_linked_folder_are_read(root: Path) -> None:
    before = [image for image, _ in read_all(root, "val")]
    folder = root / "val2017"
    (folder / FIRST).rename(folder / "moved.png")
    (folder / FIRST).symlink_to("moved.png")
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    assert all((a == b).all() for a, (b, _) in zip(before, read_all(root, "val"), strict=True))


def test_an_image_of_another_size_is_not_decoded(root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(root / "val2017" / FIRST, lambda path: Image.new("1", (9_000, 9_000)).save(path))
    monkeypatch.setattr(image_files, "_to_rgb", lambda image: pytest.fail("decoded"))
    refused(lambda: CocoDataset(root, "val")[0], 3, f"{path}: is 9000 x 9000, annotated as 64 x 64; expected the size")


def test_no_image_is_a_program(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    refused(lambda: read_rgb(path), 3, f"{path}: cannot be read as an image: EPS is a program; expected pixels")


BAD_NAMES = ["a\0b", "\ud800", "line\nbreak", "\x1b[31m", "a\u2028b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_texts_of_one_line(root: Path, name: str, refused: Refused) -> None:
    for part, field, value in (
        ("images", "file_name", name),
        ("images", "id", name),
        ("categories", "name", name),
        ("categories", "keypoints", [name, "b", "c", "d", "e"]),
    ):
        sound = annotation_file(root, "val", "coco_kp").read_text()
        change(root, lambda content, p=part, f=field, v=value: content[p][0].update({f: v}), "coco_kp")
        path = annotation_file(root, "val", "coco_kp")
        refused(lambda: CocoDataset(root, "val", "coco_kp"), 3, f"{path}: ", f"{field} is ")
        path.write_text(sound)
    for unusual in ("Größe", "😀👩‍👧", "می‌خواهم", "a b", "%s"):
        assert is_text(unusual)


def test_large_category_ids_cost_nothing(root: Path) -> None:
    def renumber(content: Content) -> None:
        for each in content["categories"]:
            each["id"] += 10**9
        for each in content["annotations"]:
            each["category_id"] += 10**9

    change(root, renumber)
    data = CocoDataset(root, "train", train=True)
    assert data.num_classes == 4
    assert {*data.labels.ids.values()} == {10**9 + 1, 10**9 + 2, 10**9 + 3}


def test_category_ids_are_of_one_kind(root: Path, refused: Refused) -> None:
    change(root, lambda content: content["categories"].append({"id": "x"}))
    path = annotation_file(root, "val", "coco")
    message = f"{path}: category ids of different kinds: 1 and 'x'; expected all numbers, or all strings"
    refused(lambda: CocoDataset(root, "val"), 3, message)
    refused(lambda: read_coco(path), 3, message)


def test_wrong_sigmas_are_refused_before_anything_is_evaluated(root: Path, refused: Refused) -> None:
    change(root, lambda content: content["categories"][0].update(keypoint_sigmas=[0.1, -1, 1, 1, 1]), "coco_kp")
    path = annotation_file(root, "val", "coco_kp")
    message = f"{path}: wrong keypoint sigmas: category 1: keypoint_sigmas is [0.1, -1, 1, 1, 1]"
    refused(lambda: CocoEvaluator(read_coco(path), ["keypoints"], name=path), 3, message)


def test_what_is_not_evaluated_is_not_given_to_a_backend(root: Path) -> None:
    path = annotation_file(root, "val", "coco_kp")
    sound = CocoEvaluator(read_coco(path), ["segm"]).evaluate([])

    def spoil(content: Content) -> None:
        content["annotations"][0].update(keypoints=0.5, num_keypoints="x", bbox=[1], more={"a": 1})
        content["categories"][0].update(name=7, skeleton="x", keypoint_sigmas=[0.1] * 5)
        content["images"][0].update(license=[])

    change(root, spoil, "coco_kp")
    for backend in ("pycocotools", "hotcoco", "faster"):
        pytest.importorskip({"hotcoco": "hotcoco", "faster": "faster_coco_eval"}.get(backend, "pycocotools"))
        assert CocoEvaluator(read_coco(path), ["segm"], backend=backend).evaluate([]) == sound


def test_objects_of_no_category_are_not_evaluated_in_silence(root: Path, refused: Refused) -> None:
    change(root, lambda content: content["annotations"][0].update(category_id=77))
    path = annotation_file(root, "val", "coco")
    message = f"{path}: unknown categories: annotation 1: category_id 77"
    refused(lambda: CocoEvaluator(read_coco(path), ["bbox"], name=path), 3, message)


@pytest.mark.parametrize("text", ['{"images": [], "images": []}', '{"images": [{"id": 1, "file_name": "x", "id": 2}]}'])
def test_a_key_that_comes_twice_is_refused(text: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    refused(
        lambda: read_json(path, dict, "COCO annotations"),
        3,
        f"{path}: cannot be read: '",
        "' comes twice; expected COCO",
    )


def test_deep_json_is_refused_or_never_copied(root: Path, refused: Refused) -> None:
    path = annotation_file(root, "val", "coco")
    deep: Any = 1
    for _ in range(700):
        deep = [deep]
    change(root, lambda content: content["categories"][0].update(more=deep, supercategory=deep))
    assert CocoEvaluator(read_coco(path), ["bbox"]).evaluate([])["bbox"]["AP"] == 0
    change(root, lambda content: content["annotations"][0].update(iscrowd=deep))
    refused(lambda: CocoDataset(root, "val"), 3, f"{path}: wrong iscrowd: annotation 1: iscrowd is [[[[")
    path.write_text("[" * 100_000)
    refused(lambda: CocoDataset(root, "val"), 3, f"{path}: cannot be read")


def test_edges_that_would_fill_the_memory_are_refused() -> None:
    zigzag = [[0, 0, 10**6, 10**6] * 50]
    assert "polygons with edges of" in str(mask_fault(zigzag, 64, 64))
    assert mask_fault([[0, 0, 10**6, 0, 10**6, 10**6, 0, 10**6]], 64, 64) is None
    assert "expected at most 4294967295" in str(mask_fault([[1, 1, 5, 1, 5, 5]], 10**6, 10**6))
    assert "damaged counts" in str(mask_fault({"size": [8, 8], "counts": "\ud800"}, 8, 8))
    assert "polygon is a str" in str(mask_fault([""], 8, 8))


_COUNTS = st.lists(st.integers(-2, 40), max_size=6) | st.text("0123PQRo`~é\0", max_size=8)
_POLYGON = st.lists(st.floats(-90, 90) | st.integers(-(10**6), 10**6), min_size=5, max_size=9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    mask=st.builds(lambda counts: {"size": [6, 8], "counts": counts}, _COUNTS) | st.lists(_POLYGON, max_size=2),
    change=st.sampled_from([None, 48]),
)
def test_pycocotools_decodes_every_mask_that_is_accepted(mask: Any, change: int | None) -> None:
    if change and isinstance(mask, dict) and isinstance(mask["counts"], list):
        mask["counts"].append(change - sum(mask["counts"]))  # so that some of them are right
    if mask_fault(mask, 6, 8) is not None:
        return
    coded = mask if isinstance(mask, dict) and isinstance(mask["counts"], str) else rle.frPyObjects(mask, 6, 8)
    decoded = rle.decode(rle.merge(coded) if isinstance(coded, list) else coded)
    assert decoded.shape == (6, 8)
    assert np.isin(decoded, (0, 1)).all()


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.text() | st.integers() | st.floats(), lambda inner: st.lists(inner, max_size=20)))
def test_a_message_shows_a_value_in_one_short_line(value: Any) -> None:
    assert len(shown(value)) <= 200
    assert len(shown(value).splitlines()) == 1
    assert len(shown("x" * 10**6)) <= 200
    assert len(shown([10**400] * 99)) <= 200
    assert shown(10**5000) == "int that is too large to be shown"


def test_truth_is_checked_before_it_is_drawn(root: Path, refused: Refused) -> None:
    path = annotation_file(root, "val", "coco")
    truth = Truth(path)
    assert len(truth.objects(FIRST, ("bbox", "segm"), (64, 64))["boxes"])
    refused(lambda: truth.objects(FIRST, ("bbox",), (64, 32)), 3, f"{path}: image {FIRST} is annotated as 64 x 64")
    change(root, lambda content: content["annotations"][0].update(segmentation={"size": [64, 64], "counts": [1]}))
    assert len(Truth(path).objects(FIRST, ("bbox",))["boxes"])
    refused(lambda: Truth(path).objects(FIRST, ("bbox", "segm")), 3, f"{path}: broken masks: annotation 1")


def test_objects_that_are_left_out_of_training_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = len(json.loads(annotation_file(root, "train", "coco").read_text())["annotations"])
    assert count > 2
    change(root, lambda content: content["annotations"][0].update(bbox=[33, 20, 1e-9, 20]))
    change(root, lambda content: content["annotations"][1].update(iscrowd=1))
    assert sum(len(target["boxes"]) for _, target in read_all(root, "train")) == count - 2
    path = annotation_file(root, "train", "coco")
    assert f"{path}: 1 objects whose box has no area are left out of training" in caplog.text
    assert f"{path}: 1 crowds are left out of training" in caplog.text


def test_texts_as_category_ids_are_drawn_as_numbers(root: Path) -> None:
    before = Truth(annotation_file(root, "val", "coco")).objects(FIRST)

    def rename(content: Content) -> None:
        for each in content["categories"]:
            each["id"] = f"id {each['id']}"
        for each in content["annotations"]:
            each["category_id"] = f"id {each['category_id']}"

    change(root, rename)
    truth = Truth(annotation_file(root, "val", "coco"))
    assert truth.objects(FIRST)["labels"].tolist() == before["labels"].tolist()
    assert truth.names_of_labels == {1: "circle", 2: "square", 3: "triangle"}


def test_a_skeleton_joins_keypoints(root: Path) -> None:
    for wrong in ([[1, 9]], [[1]], ["ab"], [[0, 1]], [[1.5, 2]]):
        change(root, lambda content, wrong=wrong: content["categories"][0].update(skeleton=wrong), "coco_kp")
        with pytest.raises(DataError, match="skeleton has"):
            Legend.read(annotation_file(root, "val", "coco_kp"))


def test_results_of_no_id_are_refused_with_a_limit_as_well(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": [1], "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}]))
    annotations = annotation_file(root, "val", "coco")
    words = ["--results", str(path), "--annotations", str(annotations), "--limit", "1", "--kinds", "bbox"]
    assert tool("eval_det").main(words) == 3
    assert f"error: {path}: incomplete results: result 0 lacks image_id" in capsys.readouterr().err


def test_entries_of_other_kinds_are_no_reason_for_a_traceback(root: Path) -> None:
    for images in ({"a": 1}, 7, "x", [None], [{"file_name": "n" * 300, "id": 1, "width": 64, "height": 64}]):
        change(root, lambda content, images=images: content.update(images=images))
        with pytest.raises(DataError):
            read_all(root, "val")
        content = json.loads(annotation_file(root, "val", "coco").read_text())
        if isinstance(images, list):
            assert check_annotations(content)
