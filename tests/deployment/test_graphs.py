"""Networks with decomposed layers, and deployed ones, as graphs: scripted, traced, exported, quantised."""

import io
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import TINY
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchvision.ops import MultiScaleRoIAlign

import norton_det as nd
from norton_det.decompositions.base import DECOMPOSITIONS, set_implementation
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand
from norton_det.deployment.implementations.decomposed import CP, SVD, SVD_LINEAR
from norton_det.deployment.implementations.linear import LINEAR
from norton_det.deployment.implementations.roi_align import ROI_ALIGN, GatheredRoIAlign

# Deprecated by torch, but the only ones of their kind: scripts, the exporter for detectors, FX quantisation.
pytestmark = pytest.mark.filterwarnings("ignore")


def classifier(method: str = "cp") -> nn.Module:
    torch.manual_seed(0)
    by_name = {"features.3": 8, "features.7": 2, "classifier.0": 9, "classifier.3": 3}
    rank: Any = by_name if method == "svd" else 2
    net, _ = nd.decompose(nd.vgg16_bn_cifar(weights=None), "vgg16_bn_cifar", rank, method=method)
    return with_statistics(net)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("method", list(DECOMPOSITIONS))
def test_decomposed_layers_are_scripted(method: str, images: Tensor) -> None:
    net = classifier(method)
    for implementation in ("factored", "dense"):
        set_implementation(net, implementation)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(net)(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["factored", "depthwise", "merged", "dense"])
def test_deployed_classifiers_are_scripted(
    implementation: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    for other in CP:
        if other != implementation:
            monkeypatch.delitem(CP._items, other)
    fast = deploy(classifier(), images, repeats=1)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(fast)(images), fast(images))
        torch.testing.assert_close(torch.jit.script(fast)(images[:0]), fast(images[:0]))


@pytest.mark.parametrize(
    "implementation",
    ["factored", *(pytest.param(name, marks=pytest.mark.slow) for name in SVD_LINEAR if name != "factored")],
)
def test_low_rank_layers_are_scripted_and_exported(
    implementation: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SVD_LINEAR, "_items", {implementation: SVD_LINEAR[implementation]})
    name = implementation.removesuffix("_convolution")
    monkeypatch.setattr(SVD, "_items", {name: SVD[name]})
    net = classifier("svd").eval()
    fast = deploy(net, images, repeats=1)
    assert sum(block.implementation.startswith(name) for block in fast.deployment.blocks) == 4
    for graph in (net, fast):
        with torch.no_grad():
            expected = graph(images)
            torch.testing.assert_close(torch.jit.script(graph)(images), expected, rtol=1e-4, atol=1e-5)
        file = io.BytesIO()
        torch.onnx.export(graph, (images,), file, dynamo=False, opset_version=16, input_names=["images"])
        (got,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-3)


def test_a_deployed_classifier_is_quantised(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LINEAR._items, "linear")
    fast: Any = deploy(classifier(), images, repeats=1)
    prepared = prepare_fx(fast, get_default_qconfig_mapping("x86"), (images,))
    with torch.no_grad():
        prepared(images)
        quantised, expected = convert_fx(prepared)(images), fast(images)
    assert (quantised - expected).abs().max() < 0.2 * expected.abs().max()


class Outputs(nn.Module):
    """A detector of one image, with its predictions as a tuple."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        predictions = self.detector([image])[0]
        return predictions["boxes"], predictions["labels"], predictions["scores"]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A deployed Faster R-CNN with all that is not torchvision's own."""
    monkeypatch.delitem(LINEAR._items, "linear")
    monkeypatch.delitem(ROI_ALIGN._items, "roi_align")
    torch.manual_seed(0)
    net = nd.fasterrcnn_cpresnet50_fpn(weights=None, num_classes=3, **{**TINY, "box_score_thresh": 0.0})
    net, _ = nd.decompose(net, "fasterrcnn_cpresnet50_fpn", 1)
    fast = deploy(with_statistics(net), [torch.rand(3, 64, 64)], repeats=1)
    assert isinstance(fast.roi_heads.box_roi_pool, GatheredRoIAlign)
    return Outputs(fast).eval()


def test_a_traced_detector_computes_other_images_too(detector: nn.Module) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(detector, torch.rand(3, 64, 64), check_trace=False)
        for size in ((64, 64), (64, 80)):
            image = torch.rand(3, *size)
            for got, expected in zip(traced(image), detector(image), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_an_exported_detector_computes_other_images_too(detector: nn.Module) -> None:
    file = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["image"], "dynamic_axes": {"image": {1: "height", 2: "width"}}}
    torch.onnx.export(detector, (torch.rand(3, 64, 64),), file, dynamo=False, opset_version=16, **names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    for size in ((64, 64), (64, 80)):
        image = torch.rand(3, *size)
        with torch.no_grad():
            expected = detector(image)
        for got, tensor in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), tensor, rtol=1e-3, atol=1e-2)


def test_a_detector_is_scripted(detector: Any) -> None:
    scripted = torch.jit.script(detector.detector)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (_, (got,)), expected = scripted([image]), detector(image)
    for key, tensor in zip(("boxes", "labels", "scores"), expected, strict=True):
        torch.testing.assert_close(got[key], tensor, rtol=1e-4, atol=1e-3)


def test_scripts_hold_torchvisions_roi_align() -> None:
    pool = MultiScaleRoIAlign(["0", "1"], (7, 5), 2, canonical_scale=112, canonical_level=3)
    plain = expand(pool, "gathered").__prepare_scriptable__()
    assert type(plain) is MultiScaleRoIAlign
    assert repr(plain) == repr(pool)
    assert (plain.canonical_scale, plain.canonical_level) == (112, 3)
