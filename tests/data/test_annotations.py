"""Annotations: whatever is in the file is read as finite numbers or refused by name, and nothing is lost in silence."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, tool
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from norton_det.data import Augment, CocoDataset, annotation_file, read_coco
from norton_det.data.coco.checks import check_annotations
from norton_det.data.coco.sides import flipped_order, partners
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.coco_results import read_results

Content = dict[str, Any]
WIDTH, HEIGHT = 20, 10
POLYGON = [[1, 1, 6, 1, 6, 5, 1, 5]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [11, 4, 185]}


def sound() -> Content:
    """Return two images with three objects of two categories, of which one has keypoints."""
    thing = {"category_id": 3, "area": 20, "iscrowd": 0, "bbox": [1, 1, 5, 4]}
    points = {"keypoints": [2, 2, 2, 3, 3, 1, 4, 4, 2], "num_keypoints": 3}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
        "annotations": [
            {**thing, **points, "id": 1, "image_id": 1, "segmentation": POLYGON},
            {**thing, **points, "id": 2, "image_id": 2, "segmentation": RUNS},
            {**thing, "category_id": 5, "id": 3, "image_id": 2, "segmentation": {**RUNS, "counts": ";4i5"}},
        ],
        "categories": [
            {"id": 3, "name": "thing", "keypoints": ["nose", "L_eye", "R_eye"], "skeleton": [[1, 2]]},
            {"id": 5, "name": "other"},
        ],
    }


def write(root: Path, content: Content) -> Path:
    """Write a COCO folder whose files all have one content."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        if not (root / f"{split}2017").exists():
            (root / f"{split}2017").mkdir()
            for i in (1, 2):
                Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"{split}2017" / f"{i}.png")
        for kind in ("coco", "coco_kp"):
            annotation_file(root, split, kind).write_text(json.dumps(content))
    return root


# Every way to read a data set: name, split, masks.
WAYS = [(kind, split, masks) for kind in ("coco", "coco_kp") for split in ("train", "val") for masks in (False, True)]


def read(root: Path, kind: str, split: str, masks: bool) -> list[dict[str, Any]]:
    """Read all items, check them, and return their targets."""
    data = CocoDataset(root, split, kind, train=split == "train", masks=masks)
    if split == "train" and kind == "coco_kp":
        data.transform = Augment("hflip", data.keypoint_names)
    targets = []
    for index in range(len(data)):
        image, target = data[index]
        count = len(target["boxes"])
        shapes = {"boxes": (count, 4), "labels": (count,), "area": (count,), "iscrowd": (count,)}
        dtypes = {"boxes": torch.float32, "labels": torch.int64, "area": torch.float32, "iscrowd": torch.int64}
        if masks:
            shapes["masks"], dtypes["masks"] = (count, *image.shape[1:]), torch.uint8
        if kind == "coco_kp":
            shapes["keypoints"], dtypes["keypoints"] = (count, len(data.keypoint_names), 3), torch.float32
        assert target.keys() == {*shapes, "image_id"}
        for name, shape in shapes.items():
            assert (target[name].shape, target[name].dtype) == (shape, dtypes[name]), name
            assert torch.isfinite(target[name].double()).all(), name
        targets.append(target)
    return targets


def test_what_is_sound_is_read_in_every_way(tmp_path: Path) -> None:
    write(tmp_path, sound())
    for kind, split, masks in WAYS:
        targets = read(tmp_path, kind, split, masks)
        assert [len(target["boxes"]) for target in targets] == [1, 2]
        if masks:
            assert [mask.sum().item() for target in targets for mask in target["masks"]][1] == 4
        if kind == "coco_kp":
            assert targets[1]["keypoints"][1].count_nonzero() == 0  # its category has none


JUNK = [None, True, "0", "x", "😀", [], {}, [1], [[]], {"a": 1}, 0, -1, 7, 1.5, 1e39, 1e300, 10**30, 10**400]
JUNK += [float("nan"), float("inf"), [float("nan")] * 9, [10**400] * 9, [1e300] * 4, [0] * 9, [-5, -5, 1, 1], "\0.png"]
JUNK += [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in ([1.5, 198.5], [], [300], "~", "", None, [200.0])]
JUNK += [{"size": [10.0, 20.0], "counts": [200]}, [[1, 1, 4, 1]], [[1, 2, 3, 4, 5, float("inf")]], [1, 2, 3, 4, 5, 6]]
FIELDS = ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints"]
FIELDS += ["file_name", "width", "height", "name"]


@st.composite
def contents(draw: st.DrawFn) -> Content:
    """Draw content with up to three changes: a value is replaced, removed or repeated."""
    content: Content = copy.deepcopy(sound())
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(["images", "annotations", "annotations", "categories"]))
        entries = content.get(part)
        change = draw(st.sampled_from(["field"] * 8 + ["remove"] * 2 + ["entry", "part", "repeat"]))
        if change == "part":
            content[part] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif isinstance(entries, list) and entries:
            index = draw(st.integers(0, len(entries) - 1))
            if change == "entry":
                entries[index] = copy.deepcopy(draw(st.sampled_from(JUNK)))
            elif change == "repeat":
                entries.append(copy.deepcopy(entries[index]))
            elif isinstance(entries[index], dict):
                field = draw(st.sampled_from([*entries[index], *FIELDS]))
                if change == "remove":
                    entries[index].pop(field, None)
                else:
                    entries[index][field] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return content


def refusal(run: Callable[[], object]) -> str:
    """Return the message of a refusal, an empty text if there is none; other errors are raised."""
    try:
        run()
    except DataError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(content=contents())
def test_any_annotations_are_read_or_refused(content: Content, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write(tmp_path_factory.getbasetemp() / "any", content)
    for kind, split, masks in WAYS:
        path = annotation_file(root, split, kind)
        message = refusal(lambda kind=kind, split=split, masks=masks: read(root, kind, split, masks))
        assert not message or str(path) in message or f"{root / split}2017" in message
        assert not message or any(word in message for word in ("annotation", "image", "categor", "id ", "boxes"))
        if str(path) in message and "can be used" not in message:
            # check-data reports what a data set refuses.
            found: list[str] = []
            reported = refusal(
                lambda found=found, masks=masks, kind=kind: found.extend(
                    f.severity for f in check_annotations(content, masks=masks, keypoints=kind == "coco_kp")
                )
            )
            assert reported or "error" in found, message
        if not message and split == "val":
            measured = "keypoints" if kind == "coco_kp" else "segm" if masks else "bbox"
            data = CocoDataset(root, split, kind)
            refusal(lambda data=data, measured=measured: CocoEvaluator(data.coco, [measured]).evaluate([]))


def changed(part: str, index: int = 0, **fields: Any) -> Content:
    content = sound()
    content[part][index].update(fields)
    return content


def without(part: str, field: str) -> Content:
    content = sound()
    del content[part][0][field]
    return content


REFUSED = [
    ("text for iscrowd", changed("annotations", iscrowd="0"), WAYS, "wrong iscrowd: annotation 1: iscrowd is '0'"),
    ("no iscrowd", changed("annotations", iscrowd=None), WAYS, "wrong iscrowd: annotation 1: iscrowd is None"),
    (
        "no keypoints",
        changed("annotations", keypoints=None),
        [way for way in WAYS if way[0] == "coco_kp"],
        "wrong keypoints: annotation 1: keypoints: None; expected 9",
    ),
    (
        "keypoints without names",
        changed("categories", keypoints=7),
        [way for way in WAYS if way[0] == "coco_kp"],
        "wrong keypoint names: category 3: keypoints is 7; expected a list of distinct names",
    ),
    (
        "run lengths of fractions",
        changed("annotations", 1, segmentation={**RUNS, "counts": [1.5, 198.5]}),
        [way for way in WAYS if way[2]],
        "broken masks: annotation 2: segmentation with damaged counts",
    ),
    (
        "polygon of two points",
        changed("annotations", segmentation=[[1, 1, 4, 1]]),
        [way for way in WAYS if way[2]],
        "broken masks: annotation 1: polygon of 4 numbers",
    ),
]


@pytest.mark.parametrize(("content", "ways", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_read_is_refused_by_those_who_read_it(
    content: Content,
    ways: list[Any],
    message: str,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, content)
    for way in WAYS:
        if way in ways:
            refused(lambda way=way: read(tmp_path, *way), 3, f"{annotation_file(tmp_path, way[1], way[0])}: {message}")
        else:
            assert len(read(tmp_path, *way)) == 2
    assert tool("check_data").main(["--data-path", str(tmp_path), "--dataset", "coco_kp", "--masks"]) == 3
    assert message.partition(":")[0] in capsys.readouterr().err


def test_an_area_that_is_missing_is_that_of_the_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, without("annotations", "area"))
    for way in WAYS:
        caplog.clear()
        assert read(tmp_path, *way)[0]["area"].tolist() == [20]
        assert ("wrong areas: annotation 1: no area" in caplog.text) == (way[1] == "train")
    with pytest.raises(DataError, match="wrong areas: annotation 1: no area"):
        CocoEvaluator(CocoDataset(tmp_path, "val").coco, ["bbox"])


@pytest.mark.parametrize("keypoints", [None, []])
def test_a_category_may_have_no_keypoints(keypoints: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = sound()
    content["categories"].insert(0, {"id": 1, "name": "first", "keypoints": keypoints})
    write(tmp_path, content)
    targets = read(tmp_path, "coco_kp", "train", False)
    assert [target["keypoints"].shape for target in targets] == [(1, 3, 3), (2, 3, 3)]
    assert "categories without keypoints: category 5: 1 objects; their objects have boxes alone" in caplog.text
    metrics = CocoEvaluator(CocoDataset(tmp_path, "val", "coco_kp").coco, ["keypoints"]).evaluate([])
    assert metrics["keypoints"]["AP"] == 0


def test_a_keypoint_data_set_needs_keypoints(tmp_path: Path, refused: Refused) -> None:
    write(tmp_path, changed("categories", keypoints=None))
    for split in ("train", "val"):
        path = annotation_file(tmp_path, split, "coco_kp")
        run = lambda split=split: CocoDataset(tmp_path, split, "coco_kp", train=split == "train")  # noqa: E731
        refused(run, 3, f"{path}: no keypoint names: no category has keypoints; a keypoint detector needs")
    words = ["--data-path", str(tmp_path), "--annotations-only", "--splits", "val"]
    assert tool("check_data").main([*words, "--dataset", "coco_kp"]) == 3
    assert tool("check_data").main(words) == 0


def points(count: int, visible: int) -> list[int]:
    return [1, 1, 2] * visible + [0, 0, 0] * (count - visible)


@pytest.mark.parametrize(("count", "minimum"), [(1, 1), (2, 1), (3, 1), (5, 2), (17, 10), (34, 20)])
def test_images_with_few_visible_keypoints_are_left_out_and_counted(
    count: int, minimum: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = changed("categories", keypoints=[f"point {i}" for i in range(count)])
    content["annotations"] = content["annotations"][:2]
    for annotation, visible in zip(content["annotations"], (minimum, minimum - 1), strict=True):
        annotation.update(keypoints=points(count, visible), num_keypoints=visible)
    content["images"].append({**content["images"][0], "id": 3})
    write(tmp_path, content)
    with caplog.at_level("INFO"):
        assert CocoDataset(tmp_path, "train", "coco_kp", train=True).ids == [1]
    reasons = f"1 with fewer than {minimum} visible keypoints, 1 without objects that can be used"
    assert f"2 of 3 images are left out of training: {reasons}" in caplog.text


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("L_eye", "R_eye"),
        ("l_eye", "r_eye"),
        ("leftEye", "rightEye"),
        ("LeftEye", "RightEye"),
        ("LEye", "REye"),
        ("eyeL", "eyeR"),
        ("eye.L", "eye.R"),
        ("Left Eye", "Right Eye"),
        ("left-eye", "right-eye"),
        ("lefteye", "righteye"),
        ("eye left", "eye right"),
        ("eyeleft", "eyeright"),
        ("LEFT_EYE", "RIGHT_EYE"),
        ("left", "right"),
        ("L", "R"),
    ],
)
def test_sides_are_recognised(left: str, right: str) -> None:
    names = ["nose", left, "bright spot", right, "rear", "L1"]
    assert partners(names) == {left: right, right: left}
    assert flipped_order(names) == [0, 3, 2, 1, 4, 5]
    for lonely in (left, right):
        if lonely in ("eyeleft", "eyeright", "lefteye", "righteye"):  # as "bright" and "leftover" have no side
            assert flipped_order(["nose", lonely]) == [0, 1]
            continue
        with pytest.raises(UsageError, match=f"{lonely!r} has a side and no certain partner among nose, {lonely}"):
            flipped_order(["nose", lonely])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Lknee", "Rknee", "L1", "R1", "lhip", "rhip"], [("Lknee", "Rknee"), ("L1", "R1"), ("lhip", "rhip")]),
        (["wheel_fl", "wheel_fr", "wheel_rl", "wheel_rr"], [("wheel_fl", "wheel_fr"), ("wheel_rl", "wheel_rr")]),
        (["ul", "ur", "ll", "lr"], [("ul", "ur"), ("ll", "lr")]),
        (["LEye", "Reye", "LEFTear", "rightEar"], [("LEye", "Reye"), ("LEFTear", "rightEar")]),
        (["upleftarm", "uprightarm", "leftover", "tail"], [("upleftarm", "uprightarm")]),
        (
            ["left_lamp_left", "left_lamp_right", "right_lamp_left", "right_lamp_right"],
            [("left_lamp_left", "right_lamp_right"), ("left_lamp_right", "right_lamp_left")],
        ),
    ],
)
def test_common_spellings_of_sides(
    names: list[str], pairs: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    both = dict(pairs) | {right: left for left, right in pairs}
    assert partners(names) == both
    with caplog.at_level("INFO"):
        assert [names[index] for index in flipped_order(names)] == [both.get(name, name) for name in names]
    (line,) = caplog.messages
    assert "a flip exchanges: " + ", ".join(map("/".join, pairs)) + "; that it does not: " in line
    assert line.endswith(", ".join(name for name in names if name not in both) or "none")


def test_an_uncertain_partner_is_refused_by_name(refused: Refused) -> None:
    names = ["ll", "lr", "rl", "rr"]
    assert partners(names) == dict.fromkeys(names)
    refused(lambda: flipped_order(names), 2, "keypoint 'll' has a side and no certain partner among ll, lr, rl, rr")
    assert flipped_order(names, [("ll", "lr"), ("rl", "rr")]) == [1, 0, 3, 2]


_BASES = st.text("abcdemnop", min_size=1, max_size=5)  # neither l nor r
_SPELLINGS = st.sampled_from(
    ["left_{}", "L_{}", "l{}", "L{}", "{}l", "{}_left", "{} Left", "left{}", "{}Left{}", "a{}l{}", "{}-L", "Left {}"]
)


@settings(deadline=None)  # machines are slow at times
@given(st.lists(st.tuples(_BASES, _SPELLINGS), max_size=6, unique_by=lambda pair: pair[0]), st.sets(_BASES), st.data())
def test_partners_differ_by_one_side(spelled: list[tuple[str, str]], others: set[str], data: st.DataObject) -> None:
    exchange = str.maketrans("lL", "rR")

    def pair(base: str, spelling: str) -> tuple[str, str]:
        right = spelling.replace("left", "right").replace("Left", "Right")
        right = right if right != spelling else spelling.translate(exchange)
        return spelling.replace("{}", base), right.replace("{}", base)

    pairs = [pair(*case) for case in spelled]
    assume(len({name.lower() for both in pairs for name in both} | others) == 2 * len(pairs) + len(others))
    names = data.draw(st.permutations([*others, *(name for both in pairs for name in both)]))
    expected = dict(pairs) | {right: left for left, right in pairs}
    assert partners(names) == expected
    order = flipped_order(names)
    assert [order[index] for index in order] == list(range(len(names)))


@settings(deadline=None)
@given(st.lists(st.text("lrLRa_", min_size=1, max_size=4) | st.sampled_from(["left", "right_l"]), max_size=8))
def test_partners_are_mutual(names: list[str]) -> None:
    found = partners(names)
    assert found.keys() <= set(names)
    assert all(found[other] == name != other for name, other in found.items() if other is not None)


def test_pairs_that_are_given() -> None:
    names = ["nose", "left_eye", "b", "c"]
    assert flipped_order(names, [("b", "c")]) == [0, 1, 3, 2]
    assert flipped_order(names, [("c", "left_eye")]) == [0, 3, 2, 1]
    with pytest.raises(UsageError, match="pair b,d: unknown keypoint 'd'; expected nose, left_eye, b, c"):
        flipped_order(names, [("b", "d")])
    with pytest.raises(UsageError, match="pair b,nose: 'b' occurs twice"):
        flipped_order(names, [("b", "c"), ("b", "nose")])
    assert Augment("hflip", names, pairs=[("b", "c")]).flipped_order == [0, 1, 3, 2]
    target = {"keypoints": torch.rand(1, 4, 3)}
    image = torch.rand(3, 4, 4)
    same, kept = Augment("hflip", names, probability=0)(image, target)
    assert same is image
    assert kept is target


def test_keypoints_of_one_side_are_reported() -> None:
    content = changed("categories", keypoints=["nose", "L_eye", "R_ear"])
    (finding,) = [f for f in check_annotations(content) if f.check == "keypoints without partner"]
    assert (finding.severity, finding.examples) == ("warning", ["category 3: L_eye", "category 3: R_ear"])


@st.composite
def results(draw: st.DrawFn) -> Any:
    """Draw results that are the truth, with up to three values that are replaced or removed."""
    content = sound()
    points = content["annotations"][0]["keypoints"]
    rows = [{"keypoints": points, **annotation, "score": 0.5} for annotation in content["annotations"]]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        field = draw(st.sampled_from(["image_id", "category_id", "score", "bbox", "segmentation", "keypoints"]))
        if draw(st.booleans()):
            row[field] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        else:
            row.pop(field, None)
    return draw(st.sampled_from([*JUNK, rows, rows, [*rows, draw(st.sampled_from(JUNK))]]))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(found=results())
def test_any_results_are_evaluated_or_refused(found: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write(tmp_path_factory.getbasetemp() / "results", sound())
    path = root / "results.json"
    path.write_text(json.dumps(found))
    coco = read_coco(annotation_file(root, "val", "coco_kp"))
    for kind in ("bbox", "segm", "keypoints"):
        message = refusal(lambda kind=kind: CocoEvaluator(coco, [kind]).evaluate(read_results(path), name=path))
        assert not message or str(path) in message
