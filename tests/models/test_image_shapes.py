"""Images that a detector would scale to nothing are refused, all others are run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.data import Augment
from norton_det.data.coco.transforms import PRESETS
from norton_det.errors import DataError
from norton_det.evaluation.predict import predict
from norton_det.models.image_shapes import check_shapes
from norton_det.training.detection import Detection

SIDES = st.integers(1, 60) | st.integers(1, 3000)
THIN = (60000, 1)


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 80), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_refused_is_what_torchvision_cannot_scale(h: int, w: int, least: int, most: int, fixed: bool) -> None:
    transform = GeneralizedRCNNTransform(least, most, [0.0], [1.0], fixed_size=(8, 8) if fixed else None).eval()
    try:
        transform.resize(torch.zeros(1, h, w))
        scaled = True
    except RuntimeError:
        scaled = False
    net = nn.Module()
    net.transform = transform
    try:
        check_shapes(net, [("a", w, h)])
        accepted = True
    except DataError:
        accepted = False
    assert accepted == scaled


@pytest.fixture(scope="module")
def detector() -> tuple[nn.Module, Any]:
    return make_detector("fasterrcnn_cpresnet50_fpn", num_classes=4, **TINY)


@pytest.fixture
def thin(tmp_path: Path, shapes: Path) -> Path:
    """A COCO folder with an image of 60000 x 1 in each split."""
    folder = tmp_path / "thin"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images = folder / f"{split}2017"
        images.mkdir()
        file = f"instances_{split}2017.json"
        content = json.loads((shapes / "annotations" / file).read_text())
        entry = content["images"][0]
        for image in content["images"]:
            (images / image["file_name"]).symlink_to(shapes / f"{split}2017" / image["file_name"])
        (images / "thin.png").symlink_to(tmp_path / "thin.png")
        width, height = THIN
        content["images"].append({**entry, "id": 999, "file_name": "thin.png", "width": width, "height": height})
        box = {**content["annotations"][0], "id": 99999, "image_id": 999, "bbox": [3, 0, 50, 1], "area": 50}
        content["annotations"].append({**box, "segmentation": [[3, 0, 53, 0, 53, 1, 3, 1]]})
        (folder / "annotations" / file).write_text(json.dumps(content))
    Image.new("RGB", THIN).save(tmp_path / "thin.png")
    return folder


WHAT = ("thin.png: is 60000 x 1", "expected a longer side of at most 64 times the shorter")


@pytest.mark.slow
def test_commands_name_the_image(detector: Any, thin: Path, tmp_path: Path, refused: Refused) -> None:
    file, out = tmp_path / "net.safetensors", tmp_path / "out"
    nd.save(*detector, file)
    image = tmp_path / "thin.png"
    words = ["--checkpoint", file, "--input", image, "--output", out]
    refused(lambda: tool("visualize").main([*map(str, words)]), 3, *WHAT, unwritten=out)
    refused(lambda: nd.predict(detector[0], image), 3, *WHAT)
    words = ["--checkpoint", file, "--data-path", thin]
    refused(lambda: tool("eval_det").main([*map(str, words)]), 3, *WHAT)
    words = ["--weights", file, "--data-path", thin, "--model", "fasterrcnn_cpresnet50_fpn", "--device", "cpu"]
    refused(lambda: tool("train_det").main([*map(str, words), "--output-dir", str(out)]), 3, *WHAT)


def test_whoever_has_no_names_is_told_the_id(detector: Any) -> None:
    net = detector[0]
    target = {"boxes": torch.tensor([[3.0, 0, 50, 1]]), "labels": torch.tensor([1]), "image_id": 7}
    batch, cpu = ([torch.zeros(3, 1, 300)], [target]), torch.device("cpu")
    with pytest.raises(DataError, match=r"^image 7: is 300 x 1; expected"):
        predict(net, [batch], cpu)
    any_: Any = SimpleNamespace()
    with pytest.raises(DataError, match=r"^image 7: is 300 x 1; expected"):
        Detection(any_, any_, cpu, any_, ("bbox",)).losses(net.train(), batch)
    with pytest.raises(DataError, match=r"^an image: is 300 x 1; expected"):
        nd.predict(net, torch.zeros(3, 1, 300))


@pytest.mark.slow
def test_an_exported_detector_says_the_size(detector: Any, tmp_path: Path) -> None:
    nd.export_network(detector[0].eval(), tmp_path / "net.onnx", spec=detector[1], image_size=(64, 64))
    net = nd.load_detector(tmp_path / "net.onnx")
    with pytest.raises(DataError, match=r"^images \(1, 3, 1, 300\): cannot be computed: .*[Rr]esize"):
        nd.predict(net, torch.zeros(3, 1, 300))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_augmentation_refuses_what_is_too_thin_for_it(preset: str) -> None:
    augment, done = Augment(preset), 0
    messages: list[str] = []
    expected: list[str] = []
    for height, width in ((1, 1), (1, 300), (2, 5), (3, 300), (30, 40)) * 3:
        size: Any = {"format": "XYXY", "canvas_size": (height, width)}
        boxes = tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0, width, height]]), **size)
        target = {"boxes": boxes, "labels": torch.ones(1), "image_id": 7}
        try:
            augment(torch.rand(3, height, width), target)
        except DataError as error:
            messages.append(str(error))
            small = f"image 7: is {width} x {height}, too thin for data_augmentation {preset!r}"
            expected.append(small if height < 30 else "none")
        else:
            done += 1
    assert done >= 3
    assert all(map(str.startswith, messages, expected))
