"""``norton-det export``: what it writes and prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused
from exported_networks import narrow_detector
from PIL import Image

import norton_det as nd
from norton_det.cli.main import main
from norton_det.export.images import generated_images, read_images
from norton_det.export.preprocessing import preprocessing_of
from norton_det.structure.settings import spec_from_configuration


def command(*words: object) -> int:
    return main(["export", *map(str, words)])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with images of two sizes, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((64 + 16 * i, 48), 60).convert("RGB").save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("of these images")
    return folder


@pytest.mark.slow
def test_a_detector_of_a_folder(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, spec = narrow_detector("fasterrcnn_cpresnet50_fpn")
    nd.save(net, spec, tmp_path / "best.safetensors")
    given = ("--check-images", images, "--check-count", 2, "--implementation", "merged")
    assert command(tmp_path, "--output", tmp_path / "net.onnx", *given) == 0
    printed = capsys.readouterr().out
    assert "net.onnx: fasterrcnn_cpresnet50_fpn, ONNX, " in printed
    assert "images (1, 3, height, width) -> boxes, labels, scores" in printed
    assert "decomposed layers: 16 merged" in printed
    assert "an image without any detection (score threshold 1): none" in printed
    assert "compared: 4 images of 4 sizes (48x64, 48x80, " in printed
    script = ("--format", "torchscript", "--output", tmp_path / "net.pt", "--keep-norms", "--static", "--json")
    assert command(tmp_path / "best.safetensors", *script) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dynamic"] == []
    assert report["check"]["detections"] >= 10
    assert report["bytes"] == (tmp_path / "net.pt").stat().st_size
    assert not [change for change in report["changes"] if "norm" in change], "they are kept"
    assert [change for change in report["changes"] if "decomposed" in change] == ["decomposed layers: 16 dense"]


@pytest.mark.slow
def test_parts_of_a_detector(tmp_path: Path) -> None:
    net, spec = narrow_detector("fasterrcnn_cpresnet50_fpn", as_a_whole=True)
    file = tmp_path / "net.safetensors"
    nd.save(net, spec, file)
    batch = torch.rand(2, 3, 64, 96)
    for part, keys in (("backbone", [*"0123"]), ("pyramid", [*"0123", "pool"])):
        assert command(file, "--part", part, "--output", tmp_path / f"{part}.onnx", "--image-size", 64, 96) == 0
        maps = nd.load_onnx(tmp_path / f"{part}.onnx")(batch)
        assert list(maps) == keys
        expected: Any = net.backbone if part == "pyramid" else net.backbone.body
        with torch.no_grad():
            for name, values in expected(batch).items():
                torch.testing.assert_close(maps[name], values, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_state_dict_of_a_builder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"min_size": 64, "max_size": 64, "topk_candidates": 20, "detections_per_img": 5}
    net = nd.retinanet_cpresnet50_fpn(num_classes=3, **limits)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = ("--model", "retinanet_cpresnet50_fpn", "--num-classes", 3, "--model-kwargs", json.dumps(limits))
    assert command(tmp_path / "net.pth", *model, "--output", tmp_path / "net.onnx", "--check-threshold", 0.05) == 0
    assert "an image without any detection" in capsys.readouterr().out
    assert nd.load_onnx(tmp_path / "net.onnx").kinds == ("bbox",)


@pytest.mark.slow
def test_a_program_of_a_detector_is_refused(tmp_path: Path, refused: Refused) -> None:
    net, spec = narrow_detector("fasterrcnn_cpresnet50_fpn")
    nd.save(net, spec, tmp_path / "net.safetensors")
    (tmp_path / "out").mkdir()
    words = (tmp_path / "net.safetensors", "--format", "torch.export", "--output", tmp_path / "out" / "net.pt2")
    refused(lambda: command(*words), 2, "model is a FasterRCNN", "torch.export cannot", unwritten=tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["IN/none.safetensors"], 3, ("none.safetensors: no such file",)),
        (["IN/state.pth"], 3, ("state.pth: holds no spec", "--model")),
        (["IN/state.pth", "--format", "onyx"], 2, ("'onyx' is unknown; expected one of: onnx",)),
        (["IN/state.pth", "--format", "torchscript"], 2, ("--output", "net.onnx: expected a name that ends with .pt")),
        (["IN/state.pth", "--check-count", "0"], 2, ("--check-count is 0; expected at least 1",)),
        (["IN/state.pth", "--check-threshold", "1"], 2, ("--check-threshold is 1.0; expected 0 to 1",)),
        (["IN/state.pth", "--image-size", "8", "8", "8"], 2, ("--image-size is 8 8 8; expected a height and a",)),
        (["IN/state.pth", "--image-size", "0"], 2, ("--image-size is 0; expected",)),
        (
            ["IN/state.pth", "--part", "backbone", "--model", "fcos_cpresnet50_fpn"],
            2,
            ("--part backbone with --model",),
        ),
        (["IN/none.pth", "--model", "fcos_cpresnet50_fpn"], 3, ("none.pth: no such file; expected a state dict",)),
        (["IN/state.pth", "--model", "fcos_cpresnet50_fpn"], 3, ("state.pth",)),
        (["IN/r56.safetensors", "--check-images", "IN/none"], 3, ("none: no such folder; expected one with images",)),
        (["IN/r56.safetensors", "--check-images", "IN/out"], 3, ("out: no image; expected files ending with",)),
        (["IN/r56.safetensors", "--part", "pyramid"], 2, ("r56.safetensors: is a resnet56_cifar",)),
    ],
)
def test_wrong_input_is_refused(
    words: list[str], code: int, parts: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "out").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pth")
    if any("r56" in word for word in words):
        spec = spec_from_configuration("resnet56_cifar", None, "[0.]+[0.9]*29")
        nd.save(nd.build(spec), spec, tmp_path / "r56.safetensors")
    given = [word.replace("IN", str(tmp_path)) for word in words]
    run = lambda: command(*given, "--output", tmp_path / "out" / "net.onnx")  # noqa: E731
    refused(run, code, *parts, unwritten=tmp_path / "out")


def test_images_are_prepared_as_the_network_takes_them(images: Path) -> None:
    whole = read_images(images, 2, {})
    assert [tuple(image.shape) for image in whole] == [(3, 48, 64), (3, 48, 80)]
    assert 0 <= float(whole[0].min()) <= float(whole[0].max()) <= 1
    spec = nd.Spec("resnet50", 1000)
    about = preprocessing_of(torch.nn.Identity(), spec)
    (image,) = read_images(images, 1, about)
    assert tuple(image.shape) == (3, 224, 224)
    assert (about["resize"], about["crop"], about["normalized_by"]) == (256, 224, "caller")
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert -1e-6 <= float((image * std + mean).min()) <= float((image * std + mean).max()) <= 1 + 1e-6
    assert preprocessing_of(torch.nn.Identity(), nd.Spec("resnet56_cifar", 10))["crop"] == 32
    assert "crop" not in preprocessing_of(torch.nn.Identity(), nd.Spec("resnet50_backbone", 0))


def test_a_detector_prepares_images_itself() -> None:
    net = nd.fasterrcnn_cpresnet50_fpn(weights=None, num_classes=3, **TINY)
    about = preprocessing_of(net, None)
    assert (about["normalized_by"], about["min_size"], about["max_size"]) == ("network", [64], 64)
    first, again = (generated_images((40, 50), about) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert first[0].shape == (3, 40, 50)
    assert float(first[0].min()) >= 0
