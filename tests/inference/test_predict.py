"""Inference: images in any form give the same objects; results know names, are drawn and written; wrong input."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import TINY, Refused
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.evaluation.coco_results import has_masks, to_results
from norton_det.evaluation.predict import detect
from norton_det.inference.result import Result
from norton_det.visualization.draw import draw_detections

CLASSES = ("__background__", "circle", "square")
POINTS = ("left_eye", "right_eye")


@pytest.fixture(scope="module")
def made() -> tuple[Any, nd.Spec]:
    torch.manual_seed(0)
    return make_detector("maskrcnn_cpresnet50_fpn", num_classes=3, **TINY)


@pytest.fixture
def mask_net(made: tuple[Any, nd.Spec]) -> nn.Module:
    net = made[0].eval()
    net.class_names = CLASSES
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four noisy images of two sizes."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (48 + 16 * (i % 2), 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def same(one: Result, other: Result) -> None:
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)
    assert (one.names, one.masks, one.size) == (other.names, other.masks, other.size)


FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "PIL": Image.open,
    "tensor": lambda path: TF.pil_to_tensor(Image.open(path)),
    "float tensor": lambda path: TF.pil_to_tensor(Image.open(path)) / 255,
    "double tensor": lambda path: TF.pil_to_tensor(Image.open(path)).double() / 255,
    "array": lambda path: np.asarray(Image.open(path)),
    "float array": lambda path: np.asarray(Image.open(path)) / 255,
    "a view": lambda path: np.asarray(Image.open(path))[::-1][::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_any_form_gives_the_same(form: str, mask_net: nn.Module, folder: Path) -> None:
    path = folder / "0.png"
    expected = nd.predict(mask_net, path, threshold=0)
    assert len(expected) > 0
    same(nd.predict(mask_net, FORMS[form](path), threshold=0), expected)


def test_grey_images_are_images(mask_net: nn.Module) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    same(nd.predict(mask_net, grey, threshold=0), nd.predict(mask_net, np.stack([grey] * 3, -1), threshold=0))
    same(nd.predict(mask_net, grey, threshold=0), nd.predict(mask_net, Image.fromarray(grey), threshold=0))


def test_several_images_give_what_each_gives(mask_net: nn.Module, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    each = [nd.predict(mask_net, path, threshold=0) for path in paths]
    for images in (str(folder), paths):
        results = nd.predict(mask_net, images, threshold=0)
        assert isinstance(results, list)
        for one, expected in zip(results, each, strict=True):
            same(one, expected)
            assert one.source.file == expected.source.file
    alike = [nd.predict(mask_net, path, threshold=0) for path in paths[::2]]
    pixels = torch.stack([TF.pil_to_tensor(Image.open(path)) for path in paths[::2]])
    for images in (pixels, pixels.permute(0, 2, 3, 1).numpy()):
        for one, expected in zip(nd.predict(mask_net, images, threshold=0, batch_size=3), alike, strict=True):
            same(one, expected)
    assert nd.predict(mask_net, []) == []


def test_a_generator_is_taken_step_by_step(mask_net: nn.Module, folder: Path) -> None:
    taken = []

    def images() -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            taken.append(path)
            yield path

    results = nd.predict(mask_net, images(), batch_size=2)
    assert not taken
    next(results)
    assert len(taken) == 2
    assert len(list(results)) == 3


def test_the_objects_are_those_that_are_detected(mask_net: nn.Module, folder: Path) -> None:
    image = TF.pil_to_tensor(Image.open(folder / "0.png"))
    mask_net.train()
    whole = nd.predict(mask_net, image, threshold=0)
    assert mask_net.training
    mask_net.eval()
    middle = len(whole) // 2
    threshold = float(whole.scores[middle - 1 : middle + 1].mean())
    result, found = nd.predict(mask_net, image, threshold=threshold), detect(mask_net, image / 255, threshold=threshold)
    assert 0 < len(result) < len(whole)
    torch.testing.assert_close(result.boxes, found["boxes"])
    assert np.array_equal(result.masks_array(), found["masks"].numpy())
    assert result.names == tuple(CLASSES[label] for label in found["labels"].tolist())
    assert result.keypoints is None
    assert torch.equal(result.image, image)
    rows = json.loads(result.json)
    expected = to_results(0, {**found, "masks": found["masks"][:, None]})
    for row, one in zip(rows, expected, strict=True):
        assert row["category_name"] == CLASSES[row["category_id"]]
        assert row["segmentation"] == one["segmentation"]
        assert row["bbox"] == pytest.approx(one["bbox"], abs=1e-3)
        assert row.keys() == one.keys() | {"category_name"}
    other = result.to_coco(7, {1: 33})
    assert {row["category_id"] for row in other} <= {33}
    assert len(other) == result.names.count("circle")
    assert repr(result).startswith(f"Result({len(result)} object")


def test_results_are_drawn(mask_net: nn.Module, folder: Path, tmp_path: Path) -> None:
    result = nd.predict(mask_net, folder / "1.png", threshold=0)
    drawn = result.draw(tmp_path / "drawn.png")
    expected = draw_detections(result.image, {**result.detections, "masks": result.masks_array()}, result.legend)
    assert torch.equal(TF.pil_to_tensor(drawn), expected)
    with Image.open(tmp_path / "drawn.png") as written:
        assert written.size == drawn.size
    assert max(result.draw(side=100).size) == 100
    assert repr(result).startswith(f"Result({folder / '1.png'}: ")


def test_nothing_is_a_result_too(mask_net: nn.Module, folder: Path) -> None:
    result = nd.predict(mask_net, folder / "0.png", threshold=1)
    assert (len(result), result.names, result.to_coco(), result.masks) == (0, (), [], ())
    assert result.masks_array().shape == (0, 48, 64)
    assert "0 objects" in repr(result)
    result.draw()


def test_keypoints_have_names(folder: Path) -> None:
    net: Any = make_detector("keypointrcnn_cpresnet50_fpn", num_classes=2, num_keypoints=2, **TINY)[0]
    net.keypoint_names = POINTS
    result = nd.predict(net, folder / "0.png", threshold=0, class_names=("", "person"))
    assert result.keypoints is not None
    assert result.keypoints.shape == (len(result), 2, 3)
    assert result.keypoint_scores is not None
    assert result.keypoint_scores.shape == (len(result), 2)
    assert result.keypoint_names == POINTS
    assert result.legend.skeleton == [(0, 1)]
    assert set(result.names) == {"person"}
    assert result.masks is None
    assert len(result.to_coco()[0]["keypoints"]) == 6
    result.draw()


def test_a_file_knows_its_names(folder: Path, tmp_path: Path) -> None:
    options = {"arch": "fasterrcnn_cpresnet50_fpn", "rates": "[0.75]*20", "num_classes": 3}
    net, spec = nd.compress(None, **options)
    nd.save(net, replace(spec, classes=CLASSES), tmp_path / "net.safetensors")
    detector: Any = nd.load_detector(tmp_path / "net.safetensors", "cpu", min_size=64, max_size=80)
    assert not detector.training
    assert (detector.class_names, detector.keypoint_names) == (CLASSES, ())
    assert (detector.transform.min_size, detector.transform.max_size) == ((64,), 80)
    expected = nd.predict(detector, folder / "0.png", threshold=0)
    assert set(expected.names) <= set(CLASSES[1:])


def test_the_folder_of_a_training_is_its_best_detector(
    made: tuple[Any, nd.Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    net, spec = made
    refused(lambda: nd.load_detector(tmp_path), 3, "is a folder; expected a file in it, such as best.safetensors")
    nd.save(net, replace(spec, classes=CLASSES), tmp_path / "best.safetensors")
    detector: Any = nd.load_detector(str(tmp_path), "cpu")
    assert detector.class_names == CLASSES
    name = "ssdlite320_mobilenet_v3_large"
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert type(nd.load_detector(name, "cpu", weights=None)).__name__ == "SSD", "the builder, not the folder"
    refused(lambda: nd.load_detector(f"./{name}"), 3, f"{name}: is a folder; expected a file in it")


@pytest.mark.slow
def test_a_deployed_file_knows_its_names(made: tuple[Any, nd.Spec], folder: Path, tmp_path: Path) -> None:
    net, spec = made
    net.eval().class_names = CLASSES
    image = nd.predict(net, folder / "0.png").image
    fast: Any = nd.deploy(net, [image / 255])
    assert fast.class_names == CLASSES
    nd.save(fast, replace(spec, classes=CLASSES), tmp_path / "fast.safetensors")
    again = nd.load_detector(tmp_path / "fast.safetensors", "cpu")
    same(nd.predict(again, image, threshold=0), nd.predict(fast, image, threshold=0))


def test_builders_are_known_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    detector: Any = nd.load_detector(name, "cpu", weights=None)
    result = nd.predict(detector, folder / "0.png", threshold=0)
    assert detector.class_names == ()
    assert set(result.names) <= {str(label) for label in range(91)}
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: detector.state_dict())
    named: Any = nd.load_detector(name, "cpu")
    assert named.class_names[:2] == ("__background__", "person")
    assert nd.predict(named, folder / "0.png", threshold=0).names[0] in named.class_names
    refused(lambda: nd.load_detector(name, weights="COCO_V7"), 2, "'COCO_V7'", "COCO_V1, DEFAULT")

    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    refused(lambda: nd.load_detector(name), 3, "COCO_V1: cannot be downloaded", "no route to host")


IMAGE = torch.zeros(3, 8, 8)
WRONG: dict[str, tuple[Any, str]] = {
    "channels": (torch.zeros(4, 8, 8), "Tensor (4, 8, 8) of float32; expected a file, an image of PIL"),
    "type": (torch.zeros(3, 8, 8, dtype=torch.int64), "of int64"),
    "range": (IMAGE + 255, "values from 255 to 255; expected 0 to 1, or uint8"),
    "not a number": (IMAGE * float("nan"), "values from nan to nan"),
    "order": (np.zeros((3, 8, 8), dtype=np.uint8), "ndarray (3, 8, 8) of uint8"),
    "one row": (torch.zeros(8), "Tensor (8,)"),
    "text array": (np.array([["a"]]), "ndarray (1, 1)"),
    "several in one": ([[IMAGE]], "an image is list"),
    "none": ([IMAGE, None], "an image is NoneType"),
    "number": (3, "images is int"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused(kind: str, mask_net: nn.Module, refused: Refused) -> None:
    images, message = WRONG[kind]
    refused(lambda: nd.predict(mask_net, images), 2, message)


def test_wrong_arguments(mask_net: nn.Module, folder: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "x.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    classifier = tmp_path / "classifier.safetensors"
    nd.save(*nd.compress(None, arch="resnet56_cifar", rank=1), classifier)
    for run, code, message in (
        (lambda: nd.predict(mask_net, IMAGE, threshold=2), 2, "threshold is 2; expected 0 to 1"),
        (lambda: nd.predict(mask_net, IMAGE, batch_size=0), 2, "batch_size is 0"),
        (lambda: nd.predict("x.pth", IMAGE), 2, "detector is 'x.pth'; expected a network"),
        (lambda: nd.predict(mask_net, tmp_path / "y.png"), 3, "y.png: no such file"),
        (lambda: nd.predict(mask_net, tmp_path / "x.png"), 3, "x.png: cannot be read as an image"),
        (lambda: nd.predict(mask_net, tmp_path / "empty"), 2, "no image; expected files ending with"),
        (lambda: nd.load_detector("fasterrcnn"), 3, "fasterrcnn: no such file; expected a file of a detector, or one"),
        (lambda: nd.load_detector("resnet50"), 3, "resnet50: no such file"),
        (lambda: nd.load_detector(classifier), 2, "is a resnet56_cifar; expected a detector"),
        (lambda: nd.load_detector(classifier, "tpu"), 2, "device tpu: not available"),
    ):
        refused(run, code, message)


def test_masks_of_the_head_stay_small(mask_net: nn.Module) -> None:
    found = nd.evaluation.predict.detect_each(mask_net.eval(), [IMAGE, torch.zeros(3, 16, 8)], threshold=0)
    assert all(has_masks(one) and "masks" not in one for one in found)
    assert isinstance(found[0]["mask_crops"], Tensor)
