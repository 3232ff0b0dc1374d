"""Drawing, pictures from files and videos, and the tool that joins them."""

import json
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Refused, fill, tool
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.builders.load_detector import read_detector
from norton_det.data import CocoDataset
from norton_det.data.coco.truth import Truth
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.predict import detect
from norton_det.runtime import timing
from norton_det.runtime.timing import Stopwatch
from norton_det.visualization.beside import draw_beside
from norton_det.visualization.draw import READABLE, draw_detections, enlarged
from norton_det.visualization.legend import Legend
from norton_det.visualization.media import Images, Video, open_images

SKELETON = [(0, 1), (0, 2), (0, 3), (0, 4)]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of untrained detectors: they find something everywhere."""
    folder = tmp_path_factory.mktemp("detectors")
    files = {}
    for name in ("mask", "keypoint"):
        options = {"num_keypoints": 5} if name == "keypoint" else {}
        net, spec = make_detector(f"{name}rcnn_cpresnet50_fpn", num_classes=4, **TINY, **options)
        files[name] = folder / f"{name}.safetensors"
        nd.save(net, spec, files[name])
    return files


def test_names_come_from_annotations(shapes: Path, tmp_path: Path) -> None:
    legend = Legend.read(shapes / "annotations" / "person_keypoints_val2017.json")
    assert legend.names == {1: "circle", 2: "square", 3: "triangle"}
    assert legend.skeleton == SKELETON
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json: lacks categories"):
        Legend.read(tmp_path / "x.json")


def test_detect_keeps_what_is_sure(detectors: dict[str, Path], shapes: Path) -> None:
    image, _ = CocoDataset(shapes, "val")[0]
    for name, path in detectors.items():
        net, _ = read_detector(path)
        with torch.inference_mode():
            (whole,) = net([image])
        threshold = float(whole["scores"].median())
        sure = whole["scores"] > threshold
        assert 0 < sure.sum() < len(sure)
        found = detect(net, image, threshold=threshold)
        assert found.keys() == whole.keys()
        for field in found.keys() - {"masks"}:
            assert torch.equal(found[field], whole[field][sure])
        if name == "mask":
            assert torch.equal(found["masks"], whole["masks"][sure, 0] > 0.5)
            assert detect(net, image, threshold=1.0)["masks"].shape == (0, *image.shape[-2:])


def test_a_stopwatch_adds_up_what_passes_in_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    for inside, between in ((2, 10), (3, 20), (7, 40)):
        with watch:
            now[0] += inside
        now[0] += between
    assert (watch.seconds, watch.count) == (12, 3)


def save_images(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (40 + i, 30), (60 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_images_come_in_order_and_upright(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "in")
    (folder / "notes.txt").write_text("no image")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "3.jpg", exif=turned)
    source = open_images([folder])
    assert len(source) == 4
    assert [picture.shape[-2:] for picture in source] == [(30, 40), (30, 41), (30, 42), (40, 30)]
    assert len(open_images([folder / "2.png", folder / "0.png"])) == 2


def test_written_images_have_their_names(tmp_path: Path) -> None:
    source = open_images([save_images(tmp_path / "in")])
    out = source.write(tmp_path / "out", (picture + 1 for picture in source))
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    assert np.asarray(Image.open(out / "2.png"))[0, 0].tolist() == [121, 1, 1]


def test_pictures_that_cannot_be_taken(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "in")
    (folder / "0.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        list(open_images([folder]))
    with pytest.raises(UsageError, match="contains the input; expected another folder"):
        Images([folder / "1.png"]).write(folder / ".." / "in", [])
    with pytest.raises(DataError, match="none: no such file"):
        open_images([tmp_path / "none"])
    with pytest.raises(UsageError, match="no image; expected files ending with"):
        open_images([tmp_path])
    other = save_images(tmp_path / "other")
    with pytest.raises(UsageError, match=r"0\.png: 2 files have this name"):
        open_images([folder, other])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return five frames of 31 x 22 pixels that become brighter, white at the top."""
    av = pytest.importorskip("av", reason="PyAV is not installed: norton-det[video]")
    path = tmp_path / "in" / "clip.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(12))
        stream.width, stream.height, stream.pix_fmt = 31, 22, "bgr0"
        for i in range(5):
            pixels = np.full((22, 31, 3), 40 * i, dtype=np.uint8)
            pixels[:3] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_is_read_and_written(video: Path, tmp_path: Path) -> None:
    source = open_images([video])
    frames = list(source)
    assert [int(frame[0, -1, -1]) for frame in frames] == [0, 40, 80, 120, 160]
    path = source.write(tmp_path / "out", iter(frames))
    again = Video(path)
    assert path.name == "clip.mp4"
    assert (len(again), again.rate) == (5, 12)
    for before, after in zip(frames, again, strict=True):
        assert after.shape == (3, 22, 30)  # even sides
        assert (before[:, :, :30].float() - after).abs().mean() < 6
    with pytest.raises(UsageError, match="a video must be the only input"):
        open_images([video, path])


def test_a_rotated_video_is_upright(video: Path, tmp_path: Path) -> None:
    path = open_images([video]).write(tmp_path / "out", iter(Video(video)))
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    start, _, rest = path.read_bytes().rpartition(upright)  # the track's; the film's own stands before it
    path.write_bytes(start + clockwise + rest)
    frame = next(iter(Video(path)))
    assert frame.shape == (3, 30, 22)
    assert frame[:, :, -2:].float().mean() > 230  # what was at the top is at the right
    assert frame[:, :, :15].float().mean() < 20


def test_what_is_no_video(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"x\.mp4: cannot be read as an image or a video"):
        open_images([tmp_path / "x.mp4"])
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"need PyAV: pip install norton-det\[video\]"):
        open_images([video])


def test_visualize_images(
    detectors: dict[str, Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(detectors["keypoint"]), "--device", "cpu", "--score-thresh", "0.1"]
    words += ["--input", str(shapes / "val2017"), "--output", str(tmp_path / "out")]
    words += ["--annotations", str(shapes / "annotations" / "person_keypoints_val2017.json")]
    assert tool("visualize").main([*words, "--json"]) == 0
    speeds = json.loads(capsys.readouterr().out)
    assert speeds["pictures"] == 3
    assert 0 < speeds["fps_whole"] < speeds["fps"][str(detectors["keypoint"])]
    net, _ = read_detector(detectors["keypoint"])
    content = json.loads((shapes / "annotations" / "person_keypoints_val2017.json").read_text())
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    legend = Legend.read(shapes / "annotations" / "person_keypoints_val2017.json")
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    for path in (shapes / "val2017").iterdir():
        before, drawn = (pil_to_tensor(Image.open(folder / path.name)) for folder in (path.parent, tmp_path / "out"))
        found = detect(net, before / 255, threshold=0.1)
        assert torch.equal(drawn, draw_detections(before, found, legend))
        assert drawn.shape[-1] >= READABLE
        named = [row for row in rows if row["file_name"] == path.name]
        assert [row["image_id"] for row in named] == [ids[path.name]] * len(found["labels"])
        assert [row["category_id"] for row in named] == found["labels"].tolist()
        assert {(row["category_id"], row["category_name"]) for row in named} <= legend.names.items()


def test_visualize_compares_on_a_video(
    detectors: dict[str, Path], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(detectors["mask"]), "--compare", str(detectors["keypoint"]), "--device", "cpu"]
    words += ["--input", str(video), "--output", str(tmp_path / "out")]
    assert tool("visualize").main(words) == 0
    shown = capsys.readouterr().out
    assert "clip.mp4: 5 images" in shown
    assert sum(line.startswith(str(path)) for line in shown.splitlines() for path in detectors.values()) == 2
    assert "total: reading" in shown
    rows = [
        json.loads((tmp_path / "out" / name).read_text()) for name in ("detections.json", "detections_compare.json")
    ]
    assert all(row["file_name"] == "clip.mkv" and 1 <= row["image_id"] <= 5 for part in rows for row in part)
    frames = list(Video(tmp_path / "out" / "clip.mp4"))
    assert len(frames) == 5
    assert len({frame.shape for frame in frames}) == 1
    height, width = frames[0].shape[1:]
    assert width >= 2 * READABLE  # both beside each other, enlarged
    assert height > width / 2 * 22 / 31  # with titles above and parts below


def test_visualize_truth_and_class_maps(detectors: dict[str, Path], shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed: norton-det[cam]")
    path = sorted((shapes / "val2017").iterdir())[0]
    annotations = shapes / "annotations" / "instances_val2017.json"
    words = ["--checkpoint", str(detectors["mask"]), "--device", "cpu", "--score-thresh", "1", "--titles", "ours"]
    words += ["--annotations", str(annotations), "--truth", "--input", str(path), "--side", "320", "--zoom", "2"]
    shown = []
    for more in ([], ["--cam"]):
        out = tmp_path / f"out{len(more)}"
        assert tool("visualize").main([*words, *more, "--output", str(out)]) == 0
        shown.append(pil_to_tensor(Image.open(out / path.name)))
        assert json.loads((out / "detections.json").read_text()) == []
    names = Legend.read(annotations)
    truth = {"truth": Truth(annotations).objects(path.name, ("bbox", "segm"))}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    image = pil_to_tensor(Image.open(path))
    assert torch.equal(shown[0], draw_beside(image, truth | {"ours": nothing}, names, side=320, zooms=2))
    assert torch.equal(shown[1][:, : shown[0].shape[1]], shown[0])
    assert shown[1].shape[1] - shown[0].shape[1] > 320 * image.shape[1] / image.shape[2]


def test_the_truth_is_that_of_the_data(shapes: Path, refused: Refused) -> None:
    path = shapes / "annotations" / "person_keypoints_val2017.json"
    truth, data = Truth(path), CocoDataset(shapes, "val", "coco_kp", masks=True)
    files = [data.coco.imgs[number]["file_name"] for number in data.ids]
    assert truth.ids_of(files) == data.ids
    assert truth.ids_of([*files, "x.png"]) is None
    for file, (_, target) in zip(files, data, strict=True):
        found = truth.objects(file, ("bbox", "segm", "keypoints"))
        torch.testing.assert_close(found["boxes"].float(), torch.Tensor(target["boxes"]))
        assert [truth.names[label] for label in found["labels"].tolist()] == [
            data.labels.classes[label] for label in target["labels"].tolist()
        ]
        assert torch.equal(torch.stack(found["masks"]), target["masks"].bool())
        torch.testing.assert_close(found["keypoints"].float(), target["keypoints"])
        assert truth.objects(file).keys() == {"boxes", "labels"}
    refused(lambda: truth.objects("x.png"), 3, "has no image x.png")


def test_images_of_the_same_name_are_not_taken_for_each_other(tmp_path: Path, refused: Refused) -> None:
    images = [
        {"id": i, "file_name": name, "width": 4, "height": 4} for i, name in enumerate(("a/1.png", "b/1.png", "2.png"))
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = Truth(tmp_path / "truth.json")
    assert truth.ids_of(["2.png"]) == [2]
    assert truth.objects("2.png")["boxes"].shape == (0, 4)
    for ask in (lambda: truth.ids_of(["1.png"]), lambda: truth.objects("1.png")):
        refused(ask, 3, "has 2 images named 1.png: a/1.png (id 0), b/1.png (id 1); expected one")


def test_visualize_classifiers(
    small_net: Path, classes: Path, tmp_path: Path, refused: Refused, detectors: dict[str, Path]
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed: norton-det[cam]")
    path = sorted((classes / "test" / "black").iterdir())[0]
    words = ["--checkpoint", str(small_net), "--device", "cpu", "--cam", "--input", str(path), "--side", "64"]
    words += ["--output", str(tmp_path / "out")]
    assert tool("visualize").main(words) == 0
    drawn = pil_to_tensor(Image.open(tmp_path / "out" / path.name))
    image = pil_to_tensor(Image.open(path))
    assert drawn.shape[2] == 2 * 64 + 4
    assert torch.equal(drawn[:, -64:, :64], enlarged(image, 64))
    assert not torch.equal(drawn[:, -64:, -64:], enlarged(image, 64))
    other = [*words, "--compare", str(detectors["mask"])]
    refused(lambda: tool("visualize").main(other), 2, "mask.safetensors: is a maskrcnn_cpresnet50_fpn")
    refused(lambda: tool("visualize").main([word for word in words if word != "--cam"]), 2, "expected a detector")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--input IN --output IN", 2, "contains the input"),
        ("--input OUT --output OUT", 3, "out: no such file"),
        ("--checkpoint x.pth --input IN --output OUT", 3, "x.pth: no such file"),
        ("--compare NET --input IN --output OUT", 2, "--compare"),
        ("--input IN --output OUT --device tpu", 2, "device tpu: not"),
        ("--input IN --output OUT --truth", 2, "--truth needs --annotations"),
        ("--input IN --output OUT --titles a b", 2, "--titles a b: expected a title of its own for each of"),
        ("--input IN --output OUT --titles truth", 2, "--titles truth: expected"),
        ("--input IN --output OUT --zoom -1", 2, "--zoom is -1"),
        ("--input IN --output OUT --side 0", 2, "--side is 0"),
    ],
)
def test_visualize_refuses(
    words: str,
    code: int,
    message: str,
    detectors: dict[str, Path],
    shapes: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    out = tmp_path / "out"
    places = {"NET": detectors["mask"], "IN": shapes / "val2017", "OUT": out}
    filled = fill(["--checkpoint", "NET", *words.split()], places)
    refused(lambda: tool("visualize").main(filled), code, message, unwritten=out)
