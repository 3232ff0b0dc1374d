"""Checks of COCO data: each kind of spoilt data is told, sound data is not."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tool
from PIL import Image

from norton_det.data import make_shapes
from norton_det.data.coco.checks import Finding, check_annotations, check_images, check_results, raise_errors
from norton_det.data.coco.checks.fields import mask_fault
from norton_det.errors import DataError

Content = dict[str, Any]


def sound() -> Content:
    """Return two images with one object each, with keypoints and both kinds of masks."""
    common = {"category_id": 1, "iscrowd": 0, "area": 9, "bbox": [1, 1, 3, 3], "num_keypoints": 1}
    common["keypoints"] = [2, 2, 2, 0, 0, 0]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in (1, 2)],
        "annotations": [
            {**common, "id": 1, "image_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
            {**common, "id": 2, "image_id": 2, "segmentation": {"size": [6, 8], "counts": [7, 3, 38]}},
        ],
        "categories": [{"id": 1, "name": "thing", "keypoints": ["a", "b"]}],
    }


def told(findings: list[Finding], severity: str = "") -> dict[str, str]:
    """Return the first example of each finding but the notes, by name."""
    return {f.check: f.examples[0] for f in findings if f.severity != "note" and severity in ("", f.severity)}


def put(part: str, **fields: Any) -> Callable[[Content], None]:
    """Return a change of the first entry of a part."""
    return lambda content: content[part][0].update(fields)


def drop(part: str, field: str) -> Callable[[Content], None]:
    return lambda content: content[part][0].pop(field)


def corners(content: Content) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"] = [3, 3, 7, 6]


def other_keypoints(content: Content) -> None:
    content["categories"].append({"id": 2, "name": "other", "keypoints": ["a"]})


def same_name(content: Content) -> None:
    content["categories"].append({"id": 2, "name": "thing"})


SHORT = {"size": [6, 8], "counts": [7, 3]}
SPOILT = [
    ("empty lists", "error", lambda c: c["annotations"].clear(), "no annotations"),
    ("incomplete entries", "error", drop("images", "id"), "image at position 0: no id"),
    ("incomplete entries", "error", put("images", width=0), "image at position 0: width is 0"),
    ("incomplete entries", "error", put("annotations", image_id=[1]), "annotation at position 0: image_id is [1]"),
    ("incomplete entries", "error", lambda c: c["annotations"].append(7), "annotation at position 2 is a int"),
    ("duplicate image ids", "error", lambda c: c["images"].append(c["images"][0]), "id 1 comes 2 times"),
    ("duplicate category ids", "error", lambda c: c["categories"].append(c["categories"][0]), "id 1 comes 2 times"),
    ("duplicate annotation ids", "warning", put("annotations", id=2), "id 2 comes 2 times"),
    ("annotations without image", "error", put("annotations", image_id=9), "annotation 1: image_id 9"),
    ("unknown categories", "error", put("annotations", category_id=5), "annotation 1: category_id 5"),
    ("categories of one name", "warning", same_name, "'thing' of ids 1, 2"),
    ("malformed boxes", "error", put("annotations", bbox=[1, 1, float("nan"), 3]), "annotation 1: bbox is [1, 1, nan"),
    ("malformed boxes", "error", drop("annotations", "bbox"), "annotation 1: no bbox"),
    ("negative boxes", "error", put("annotations", bbox=[1, 1, -2, 3]), "annotation 1: bbox [1, 1, -2, 3]"),
    ("boxes as corners", "error", corners, "2 of 2 boxes exceed their image"),
    ("boxes without area", "warning", put("annotations", bbox=[1, 1, 0, 3]), "annotation 1: bbox [1, 1, 0, 3]"),
    ("boxes outside the image", "warning", put("annotations", bbox=[7, 1, 3, 3]), "bbox [7, 1, 3, 3], image 8 x 6"),
    ("wrong areas", "error", drop("annotations", "area"), "annotation 1: no area"),
    ("objects without mask", "error", put("annotations", segmentation=[]), "annotation 1: segmentation is []"),
    ("broken masks", "error", put("annotations", segmentation=[[1, 1, 4, 1, 4, 4, 1]]), "polygon of 7 numbers"),
    ("broken masks", "error", put("annotations", segmentation=[[1, 1, 4, 1]]), "polygon of 4 numbers"),
    ("broken masks", "error", put("annotations", segmentation=SHORT), "counts add up to 10; expected 48, 6 x 8"),
    ("categories of different keypoints", "error", other_keypoints, "category 1 has 2, category 2 has 1"),
    ("wrong keypoints", "error", put("annotations", keypoints=[1, 1, 2]), "keypoints: 3 numbers; expected 6"),
    ("wrong keypoints", "error", drop("annotations", "keypoints"), "annotation 1: keypoints: None; expected 6"),
    ("unknown visibilities", "error", put("annotations", keypoints=[1, 1, 3, 0, 0, 0]), "annotation 1: visibility 3"),
    ("wrong num_keypoints", "warning", put("annotations", num_keypoints=2), "num_keypoints is 2, 1 are visible"),
    ("paths that leave the folder", "error", put("images", file_name="../1.png"), "file_name is '../1.png'"),
    ("paths that leave the folder", "error", put("images", file_name="/1.png"), "file_name is '/1.png'"),
    ("paths that leave the folder", "error", put("images", file_name="C:\\1.png"), "file_name is"),
]


@pytest.mark.parametrize(("check", "severity", "spoil", "example"), SPOILT)
def test_spoilt_annotations_are_told(check: str, severity: str, spoil: Callable[[Content], None], example: str) -> None:
    content = sound()
    assert not told(check_annotations(content, num_classes=2, masks=True))
    spoil(content)
    found = told(check_annotations(content, num_classes=2, masks=True))
    assert example in found[check]
    assert severity == next(f.severity for f in check_annotations(content, masks=True) if f.check == check)


def test_categories_are_held_to_the_number_of_classes() -> None:
    assert "too many categories" not in told(check_annotations(sound(), num_classes=2))
    found = told(check_annotations(sound(), num_classes=1))
    assert "1 categories; expected at most 0, as num_classes is 1" in found["too many categories"]


def test_notes_are_no_errors() -> None:
    content = sound()
    content["annotations"][0].update(id=0, image_id=2, keypoints=[0] * 6, num_keypoints=0)
    content["annotations"][0]["segmentation"] = {"size": [6, 8], "counts": "73V1"}
    findings = check_annotations(content)
    assert not told(findings, "error")
    notes = {"annotation id 0", "no visible keypoints", "images without annotations"}
    assert notes == {f.check for f in findings if f.severity == "note"}, "run-length masks are fine"


def test_what_is_no_coco_file_is_refused() -> None:
    with pytest.raises(DataError, match="lacks annotations, categories"):
        check_annotations({"images": []})


def test_masks_by_pycocotools_are_sound_and_damaged_ones_are_not() -> None:
    from pycocotools import mask as rle

    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        pixels = rng.random((height, width)) < rng.choice([0.02, 0.5, 0.999])
        code = rle.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
        size = [int(height), int(width)]
        assert mask_fault({"size": size, "counts": code}, *size) is None
        assert "add up to" in mask_fault({"size": [size[0] + 1, size[1]], "counts": code}, size[0] + 1, size[1])
        assert "of size" in mask_fault({"size": [size[0] + 1, size[1]], "counts": code}, *size)
        assert mask_fault({"size": size, "counts": code + "7"}, *size)
        assert "damaged" in mask_fault({"size": size, "counts": code + "~"}, *size)
    assert "damaged" in mask_fault({"size": [1, 2], "counts": [3, -1]}, 1, 2)
    assert "damaged" in mask_fault({"size": [1, 2], "counts": ""}, 1, 2)
    assert "of size 5" in mask_fault({"size": 5, "counts": [2]}, 1, 2)
    assert "is a str" in mask_fault("mask", 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (1, 2):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_spoilt_images_are_told(folder: Path) -> None:
    assert not check_images(sound(), folder)
    (folder / "more").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "more" / "3.JPG")
    (folder / "notes.txt").write_text("no image")
    (note,) = check_images(sound(), folder)
    assert (note.check, note.severity, note.examples) == ("files without entry", "note", ["more/3.JPG"])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "1.png", exif=turned)
    assert "1.png: orientation 6" in told(check_images(sound(), folder), "warning")["images rotated by EXIF"]
    Image.new("RGB", (6, 8)).save(folder / "1.png")
    assert "1.png: 6 x 8, annotated as 8 x 6" in told(check_images(sound(), folder), "error")["sizes that differ"]
    (folder / "1.png").write_bytes((folder / "2.png").read_bytes()[:-30])
    (folder / "2.png").unlink()
    found = told(check_images(sound(), folder), "error")
    assert "1.png: " in found["unreadable images"]
    assert found["missing images"] == str(folder / "2.png")
    outside = sound()
    outside["images"][0]["file_name"] = "../1.png"
    assert "1.png" not in str(check_images(outside, folder)[0])  # not looked for: check_annotations tells it


RESULT = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 1, 3, 3], "keypoints": [2, 2, 1, 3, 3, 1]}
RESULT["segmentation"] = {"size": [6, 8], "counts": [7, 3, 38]}


@pytest.mark.parametrize(
    ("check", "severity", "change", "example"),
    [
        ("incomplete results", "error", {"image_id": None}, "result 0 lacks image_id, category_id or score"),
        ("results of unknown images", "error", {"image_id": "1"}, "result 0: image_id '1'"),
        ("results of no known category", "error", {"category_id": 0}, "category ids 0; the annotations have 1"),
        ("results of unknown categories", "warning", {"category_id": 0}, "result 0: category_id 0"),
        ("wrong scores", "error", {"score": float("nan")}, "result 0: score nan"),
        ("wrong boxes", "error", {"bbox": [1, 1, 3]}, "result 0: bbox [1, 1, 3]; expected four"),
        ("wrong boxes", "error", {"bbox": [3, 3, -1, 1]}, "result 0: bbox [3, 3, -1, 1] has a negative size"),
        ("boxes outside the image", "warning", {"bbox": [4, 4, 8, 6]}, "result 0: bbox [4, 4, 8, 6], image 8 x 6"),
        ("wrong masks", "error", {"segmentation": SHORT}, "result 0: segmentation whose counts add up to 10"),
        ("wrong masks", "error", {"segmentation": {"size": [8, 6], "counts": [48]}}, "of size [8, 6]"),
        ("wrong keypoints", "error", {"keypoints": [1, 1, 1]}, "result 0: keypoints: 3 numbers; expected 6"),
        ("wrong keypoints", "error", {"keypoints": [1, 1, 1, 2, float("inf"), 1]}, "not a finite number"),
    ],
)
def test_spoilt_results_are_told(check: str, severity: str, change: dict[str, Any], example: str) -> None:
    assert not check_results(sound(), [RESULT])
    findings = check_results(sound(), [{**RESULT, **change}])
    assert example in told(findings, severity)[check]


def test_results_of_some_kinds() -> None:
    broken = {**RESULT, "segmentation": SHORT}
    assert not check_results(sound(), [broken], kinds=["bbox", "keypoints"])
    assert told(check_results(sound(), [broken], kinds=["segm"])).keys() == {"wrong masks"}
    (finding,) = check_results(sound(), [{k: v for k, v in RESULT.items() if k != "bbox"}], kinds=["bbox"])
    assert finding.examples == ["result 0 has no 'bbox'"]
    (finding,) = check_results(sound(), [])
    assert (finding.check, finding.severity) == ("no results", "warning")
    assert not check_results(sound(), [{**RESULT, "image_id": np.int64(1), "score": np.float32(0.5)}])
    other = {**RESULT, "category_id": 0}
    assert told(check_results(sound(), [RESULT, other])).keys() == {"results of unknown categories"}


def test_errors_are_raised_and_warnings_logged(caplog: pytest.LogCaptureFixture) -> None:
    content = sound()
    content["annotations"][0]["bbox"] = [1, 1, 0, 3]
    raise_errors(check_annotations(content), "x.json")
    assert "x.json: boxes without area: annotation 1: bbox [1, 1, 0, 3]; left out in training" in caplog.text
    content["annotations"][1].update(category_id=7, area=-1)
    with pytest.raises(DataError, match=r"^x.json: unknown categories: annotation 2: category_id 7; .* errors: 1;"):
        raise_errors(check_annotations(content), "x.json")


def test_check_data(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data-path", str(shapes), "--dataset", "coco_kp", "--masks", "--num-classes", "4"]
    assert tool("check_data").main(words) == 0
    shown = capsys.readouterr().out
    assert shown.strip()
    assert "error" not in shown
    make_shapes(tmp_path / "spoilt", train=2, val=2, size=64)
    path = tmp_path / "spoilt" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    spoilt = copy.deepcopy(content)
    spoilt["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(spoilt))
    (tmp_path / "spoilt" / "val2017" / "extra.png").write_bytes(b"")
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 99, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]))
    words = ["--data-path", str(tmp_path / "spoilt"), "--results", str(results)]
    assert tool("check_data").main([*words, "--json"]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {f["check"] for f in found["val"]} == {"unknown categories", "files without entry"}
    assert found["results"][0]["examples"] == ["result 0: image_id 99"]
    assert "2 kinds of errors, the first in val: unknown categories: annotation 1: category_id 77" in captured.err
    assert tool("check_data").main([*words, "--annotations-only", "--splits", "train"]) == 3
    shown = capsys.readouterr().out
    assert "results: error: results of unknown images" in shown
    assert "extra.png" not in shown


@pytest.mark.skipif("NORTON_DATA" not in os.environ, reason="NORTON_DATA does not name the folder with coco_mini")
def test_coco_mini(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data-path", str(Path(os.environ["NORTON_DATA"]) / "coco_mini"), "--masks", "--num-classes", "91"]
    assert tool("check_data").main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["val"]
    (extra,) = [f for f in found if f["check"] == "files without entry"]
    assert extra["count"] == len(extra["examples"]) == 80
