"""Every kind of network in every format that it allows: classifiers, backbones, detectors, deployed ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import Refused, tool
from exported_networks import narrow_detector
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

import norton_det as nd
from norton_det.cli.main import main
from norton_det.data import make_shapes
from norton_det.deployment.implementations import expand
from norton_det.deployment.implementations.linear import CONVOLVED, LINEAR
from norton_det.deployment.implementations.roi_align import ROI_ALIGN
from norton_det.export.formats import FORMATS
from norton_det.export.images import generated_images
from norton_det.export.implementations import NAMES
from norton_det.models import classifiers
from norton_det.runtime.outputs import relative_difference

RCNNS = [f"{kind}rcnn_cpresnet50_fpn" for kind in ("faster", "mask", "keypoint")]
SIZES = ((64, 64), (64, 90), (48, 64))
NO_DETECTORS = [format for format in FORMATS if format != "torchscript"]


def export(net: nn.Module, spec: nd.Spec | None, folder: Path, format: str = "onnx", **options: Any) -> Any:
    """Export a network, and return the report."""
    return nd.export_network(net, folder / f"net{FORMATS[format].suffix}", format=format, spec=spec, **options)


def read(done: Any) -> Any:
    return FORMATS[done.format].read(str(done.path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "format"),
    [(arch, format) for arch in classifiers() for format in FORMATS if format == "onnx" or arch.startswith("vgg")],
)
def test_classifiers(arch: str, format: str, tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch=arch, rank=2, num_classes=5)
    with_statistics(net)
    done = export(net, spec, tmp_path, format)
    assert "batch" in done.contract.dynamic
    assert ("height" in done.contract.dynamic) == (arch != "vgg16_bn_cifar"), "that one is made for images of 32 pixels"
    assert any(change.startswith("decomposed layers: ") for change in done.contract.changes)
    images = torch.rand(3, 3, *done.contract.size)
    with torch.no_grad():
        assert relative_difference(read(done)(images), net(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("fpn", [False, True])
def test_backbones(fpn: bool, format: str, tmp_path: Path) -> None:
    net = with_statistics(nd.backbone(None, out_indices=(2, 4), fpn=fpn))
    done = export(net, None, tmp_path, format, image_size=(128, 160))
    assert done.contract.outputs == ("0", "1", "pool") if fpn else ("0", "1")
    assert done.contract.spec == net.spec
    images = torch.rand(2, 3, 96, 130)
    with torch.no_grad():
        assert relative_difference(dict(read(done)(images)), dict(net(images))) < 1e-4


def assert_detects_the_same(run: Any, net: Any) -> None:
    """Compare the detections in images of three sizes; the networks of this test return few, far from thresholds."""
    for size in SIZES:
        (image, *_) = generated_images(size, {})
        with torch.no_grad():
            (got,), (expected,) = run([image]), net([image])
        assert len(expected["scores"])
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(got[name], values, rtol=1e-3, atol=1e-2)


VERSION_2 = [f"{arch}_v2" for arch in RCNNS[:2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "as_a_whole", "format"),
    [
        *((arch, False, "torchscript") for arch in RCNNS),
        *((arch, False, "onnx") for arch in RCNNS),
        *((arch, True, "onnx") for arch in (*RCNNS, *VERSION_2)),
    ],
)
def test_detectors(arch: str, as_a_whole: bool, format: str, tmp_path: Path) -> None:
    net, spec = narrow_detector(arch, as_a_whole=as_a_whole)
    names: dict[str, Any] = {"class_names": [*"abc"][: spec.num_classes]}
    done = export(net, spec, tmp_path, format, implementation="factored", **names)
    check = done.check.to_dict()
    assert check["detections"] >= 20
    assert len(check["sizes"]) == 3
    assert check["without_detection"] == "score threshold 1"
    assert check["largest"]["boxes"] < 0.01
    run = read(done)
    assert_detects_the_same(run, net)
    if format == "onnx":
        assert (run.class_names, run.spec) == (tuple("abc"[: spec.num_classes]), spec)
        assert run.preprocessing["min_size"] == [64]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize("builder", [nd.retinanet_cpresnet50_fpn, nd.fcos_cpresnet50_fpn])
def test_one_stage_detectors(builder: Any, format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    limits = {"score_thresh": 0.1, "topk_candidates": 20, "detections_per_img": 5}
    net = with_statistics(builder(num_classes=3, min_size=64, max_size=96, **limits))
    head = net.head.classification_head.cls_logits
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    done = export(net, None, tmp_path, format, check_threshold=0.2)
    assert done.check.differences.detections > 0
    assert done.check.differences.figures()["boxes"] < 0.01
    assert_detects_the_same(read(done), net)


@pytest.mark.slow
@pytest.mark.parametrize("arch", RCNNS[:1])
def test_programs_of_detectors_are_refused(arch: str, tmp_path: Path, refused: Refused) -> None:
    net, spec = narrow_detector(arch)
    parts = ("model is a FasterRCNN, whose numbers of boxes depend on values: torch.export cannot hold it",)
    refused(lambda: export(net, spec, tmp_path, "torch.export"), 2, *parts, unwritten=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_deployed_detectors(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    monkeypatch.delitem(ROI_ALIGN._items, "roi_align")
    net, spec = narrow_detector("maskrcnn_cpresnet50_fpn")
    fast = nd.deploy(net, [torch.rand(3, 64, 64)], repeats=1)
    done = export(fast, spec, tmp_path, format)
    assert "2 GatheredRoIAlign are MultiScaleRoIAlign" in done.contract.changes
    assert any(change.endswith("ConvolvedLinear are Linear") for change in done.contract.changes)
    assert_detects_the_same(read(done), net)
    assert type(fast.roi_heads.box_roi_pool) is not MultiScaleRoIAlign, "the given network stays as it is"


@pytest.mark.slow
@pytest.mark.parametrize("format", NO_DETECTORS)
def test_deployed_classifiers(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    net, spec = nd.compress(None, arch="vgg16_bn_cifar", rank=1, rates="[0.8]*13", num_classes=3)
    fast = nd.deploy(with_statistics(net), torch.rand(1, 3, 32, 32), repeats=1)
    run = read(export(fast, spec, tmp_path, format))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_difference(run(images), net(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("implementation", NAMES)
def test_each_implementation_returns_the_same(implementation: str, tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch="resnet56_cifar", rank=2, rates="[0.]+[0.8]*29")
    done = export(with_statistics(net), spec, tmp_path, implementation=implementation)
    assert f"decomposed layers: 55 {implementation}" in done.contract.changes


class Convolved(nn.Module):
    """A layer that is computed as a convolution, behind a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CONVOLVED(nn.Linear(3, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.mean((2, 3)))


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_layers_of_deployment_are_replaced(format: str, tmp_path: Path) -> None:
    net = Convolved()
    done = export(net, None, tmp_path, format, image_size=(8, 8))
    assert done.contract.changes == ("1 ConvolvedLinear are Linear",)
    assert type(net.layer) is not nn.Linear
    pool: Any = expand(MultiScaleRoIAlign(["0"], 7, 2), "gathered")
    assert type(pool) is not MultiScaleRoIAlign


# What is done with a file afterwards.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a Mask R-CNN of three classes, its file and its ONNX file."""
    folder = tmp_path_factory.mktemp("mask")
    net, spec = narrow_detector("maskrcnn_cpresnet50_fpn", num_classes=4)
    spec = replace(spec, classes=("__background__", "circle", "square", "triangle"))
    nd.save(net, spec, folder / "net.safetensors")
    make_shapes(folder / "shapes", train=1, val=3, size=64)
    command = ["export", folder / "net.safetensors", "--output", folder / "net.onnx", "--implementation", "factored"]
    images = ["--check-images", folder / "shapes" / "val2017", "--check-count", 2]
    assert main([str(word) for word in (*command, *images)]) == 0
    return net, folder


@pytest.mark.slow
def test_predictions_are_the_same(made: tuple[Any, Path]) -> None:
    net, folder = made
    net.class_names = ("__background__", "circle", "square", "triangle")
    again = nd.load_detector(folder / "net.onnx")
    for image in sorted((folder / "shapes" / "val2017").iterdir()):
        got, expected = (nd.predict(one, image, threshold=0.1) for one in (again, net))
        assert len(expected)
        assert got.names == expected.names
        torch.testing.assert_close(got.boxes, expected.boxes, rtol=1e-3, atol=1e-2)
        assert (got.masks_array() != expected.masks_array()).mean() < 1e-3


@pytest.mark.slow
def test_evaluations_are_the_same(made: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = made
    metrics = []
    for name in ("net.safetensors", "net.onnx"):
        capsys.readouterr()
        words = ["--checkpoint", folder / name, "--data-path", folder / "shapes", "--device", "cpu", "--json"]
        assert tool("eval_det").main(list(map(str, words))) == 0
        metrics.append(json.loads(capsys.readouterr().out))
    assert metrics[0].keys() == metrics[1].keys() >= {"bbox", "segm"}
    assert metrics[0]["bbox"] == pytest.approx(metrics[1]["bbox"], abs=1e-3)


@pytest.mark.slow
def test_drawings_are_made(made: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = made
    words = ["--checkpoint", folder / "net.onnx", "--input", folder / "shapes" / "val2017", "--output", tmp_path / "o"]
    assert tool("visualize").main(list(map(str, words))) == 0
    assert len(list((tmp_path / "o").glob("*.png"))) == 3


@pytest.mark.slow
def test_plain_onnxruntime_runs_the_file(made: tuple[Any, Path]) -> None:
    net, folder = made
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    (image,) = generated_images((64, 80), {})[:1]
    found = session.run(["boxes", "labels"], {"images": image[None].numpy()})
    with torch.no_grad():
        (expected,) = net([image])
    torch.testing.assert_close(torch.from_numpy(found[0]), expected["boxes"], rtol=1e-3, atol=1e-2)
    assert found[1].tolist() == expected["labels"].tolist()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["norton-det.class_names"])[1] == "circle"
    assert nd.Spec.from_json(metadata["norton-det.spec"]).arch == "maskrcnn_cpresnet50_fpn"


@pytest.mark.slow
def test_other_sizes_of_an_onnx_file_are_refused(made: tuple[Any, Path], refused: Refused) -> None:
    _, folder = made
    path = folder / "net.onnx"
    refused(lambda: nd.load_detector(path, min_size=32), 2, "net.onnx: scales images to the size with which it was")
