"""Deployment in lower precision: what computes in it, what stays in float32, and the error that is reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file
from small_network import small_architecture
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.ops import boxes as box_ops

import norton_det as nd
from norton_det.cli.main import main
from norton_det.deployment.precision import LOWER, lowered, lowered_parts, rounded
from norton_det.errors import DataError, UsageError
from norton_det.models.tasks import as_inputs
from norton_det.runtime.outputs import relative_difference, tolerance_of


@pytest.fixture
def classifier() -> Iterator[tuple[nn.Module, nd.Spec]]:
    torch.manual_seed(0)
    with small_architecture():
        spec = nd.Spec("small", 5, decompositions={"3": nd.DecomposedLayer("cp", 2)})
        yield with_statistics(nd.build(spec)), spec


def detector(arch: str) -> tuple[nn.Module, nd.Spec]:
    torch.manual_seed(0)
    decompositions = {"backbone.body.layer1.0.conv2": nd.DecomposedLayer("cp", 1)}
    spec = nd.Spec(arch, 3, decompositions=decompositions, options={**TINY, "box_score_thresh": 0.0})
    return with_statistics(nd.build(spec)), spec


@pytest.mark.parametrize("dtype", LOWER.values())
def test_the_error_is_that_of_the_outputs(classifier: tuple[nn.Module, nd.Spec], dtype: torch.dtype) -> None:
    net, _ = classifier
    images = torch.rand(2, 3, 32, 32)
    fast = nd.deploy(net, images, repeats=1, dtype=dtype)
    with torch.no_grad():
        outputs, expected = fast(images), net(images)
        again = nd.deploy(net, images, repeats=1)(images)
    assert outputs.dtype == torch.float32
    assert fast.deployment.difference == pytest.approx(relative_difference(outputs, expected))
    assert relative_difference(again, expected) < fast.deployment.difference < tolerance_of(outputs.to(dtype))
    assert {parameter.dtype for parameter in fast.parameters()} == {dtype}
    assert fast.deployment.dtype == str(dtype).removeprefix("torch.")
    assert set(fast.deployment.milliseconds) == {"given", "contiguous", "channels_last", "float32"}
    assert f"computes in {fast.deployment.dtype}, takes and returns float32" in str(fast.deployment)


def test_values_that_the_type_holds_are_kept() -> None:
    # One product and no sum: with weights and inputs of such values nothing is rounded but the output.
    net = rounded(nn.Sequential(nn.Linear(1, 8, bias=False)), torch.bfloat16)
    fast: Any = nd.deploy(net, torch.ones(1, 1), repeats=1, dtype=torch.bfloat16)
    assert fast.deployment.difference == 0
    assert torch.equal(fast(torch.ones(1, 1)), net(torch.ones(1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["maskrcnn_cpresnet50_fpn", "keypointrcnn_cpresnet50_fpn"])
def test_boxes_are_computed_in_float32(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = detector(arch)[0]
    images = [torch.rand(3, 64, 80), torch.rand(3, 48, 64)]
    fast: Any = nd.deploy(net, images, repeats=1, dtype=torch.bfloat16)
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str, values: Any) -> None:
        seen.setdefault(name, set()).update(tensor.dtype for tensor in torch.utils._pytree.tree_leaves(values))

    fast.rpn.anchor_generator.register_forward_hook(lambda m, args, out: note("anchors", out))
    fast.roi_heads.box_roi_pool.register_forward_pre_hook(lambda m, args: note("boxes", args[1]))
    fast.roi_heads.box_head.fc6.register_forward_pre_hook(lambda m, args: note("box head", args))
    fast.backbone.body.conv1.register_forward_pre_hook(lambda m, args: note("backbone", args))
    nms = box_ops._batched_nms_coordinate_trick
    noted = lambda boxes, *rest: (note("nms", boxes), nms(boxes, *rest))[1]  # noqa: E731
    monkeypatch.setattr(box_ops, "_batched_nms_coordinate_trick", noted)
    with torch.no_grad():
        results = fast(images)
    exact, low = {torch.float32}, {torch.bfloat16}
    assert seen == {"anchors": exact, "boxes": exact, "nms": exact, "box head": low, "backbone": low}
    for result in results:
        assert {tensor.dtype for name, tensor in result.items() if name != "labels"} == exact
    layers = [module for module in fast.modules() if next(module.parameters(recurse=False), None) is not None]
    assert layers
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == low
    assert 0 < fast.deployment.difference < 0.3


def test_an_image_reaches_the_network_in_float32() -> None:
    net = lowered(nn.Sequential(nn.Linear(4, 4)), torch.bfloat16)
    assert as_inputs(torch.rand(2, 4, dtype=torch.float64), net).dtype == torch.float32
    assert net(torch.rand(2, 4)).dtype == torch.float32
    assert net.float()(torch.rand(2, 4)).dtype == torch.float32


def test_a_detector_of_one_stage() -> None:
    net = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64).eval()
    assert list(lowered_parts(net)) == ["backbone", "head"]
    before = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        low = lowered(rounded(net, torch.bfloat16), torch.bfloat16)(images)
    assert low[0]["boxes"].dtype == low[0]["scores"].dtype == torch.float32
    assert {name: tensor.dtype for name, tensor in net.state_dict().items()} == before


def test_a_file_keeps_the_precision(classifier: tuple[nn.Module, nd.Spec], tmp_path: Path) -> None:
    net, spec = classifier
    images = torch.rand(2, 3, 32, 32)
    exact, low = tmp_path / "exact.safetensors", tmp_path / "low.safetensors"
    nd.save(nd.deploy(net, images, repeats=1), spec, exact)
    fast = nd.deploy(net, images, repeats=1, dtype=torch.bfloat16)
    nd.save(fast, spec, low)
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in (exact, low)]
    assert sizes[0] == 2 * sizes[1]
    again, _ = nd.load(low)
    assert again.deployment == fast.deployment
    with torch.no_grad():
        assert torch.equal(again(images), fast(images))
        nd.save(again, spec, low)  # what was loaded can be saved again
        assert torch.equal(nd.load(low)[0](images), fast(images))
        measured: Any = nd.load(low, redeploy=images)[0]
        assert relative_difference(measured(images), fast(images)) < tolerance_of(torch.zeros(1, dtype=torch.bfloat16))
    assert measured.deployment.dtype == "bfloat16"
    assert measured.deployment.folded == fast.deployment.folded


@pytest.mark.slow
def test_a_detector_in_a_file(tmp_path: Path) -> None:
    net, spec = detector("fasterrcnn_cpresnet50_fpn")
    images = [torch.rand(3, 64, 64)]
    fast = nd.deploy(net, images, repeats=1, dtype=torch.bfloat16)
    nd.save(fast, spec, tmp_path / "low.safetensors")
    again = nd.load_detector(tmp_path / "low.safetensors", "cpu")
    with torch.no_grad():
        for one, other in zip(again(images), fast(images), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.filterwarnings("ignore")  # torch deprecates traces
def test_lower_precision_in_graphs(classifier: tuple[nn.Module, nd.Spec]) -> None:
    images = torch.rand(2, 3, 32, 32)
    fast = nd.deploy(classifier[0], images, repeats=1, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = fast(images)
        traced = torch.jit.trace(fast, images, check_trace=False)
        for graph in (traced, torch.export.export(fast, (images,)).module()):
            torch.testing.assert_close(graph(images), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int8, r"dtype is torch.int8; expected one of: torch.bfloat16, torch.float16"),
        (torch.float32, r"dtype is torch.float32; expected one of"),
    ],
)
def test_unknown_types(dtype: torch.dtype, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        nd.deploy(nn.Linear(2, 2), torch.rand(1, 2), dtype=dtype)


def test_networks_that_cannot_be_lowered() -> None:
    with pytest.raises(UsageError, match=r"dtype is torch.bfloat16, but weight is torch.float64; expected a network"):
        nd.deploy(nn.Linear(2, 2).double(), torch.rand(1, 2).double(), dtype=torch.bfloat16)

    class Inverse(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return input @ torch.linalg.inv(self.weight)  # for which there is no kernel in bfloat16

    net = nn.Sequential(Inverse(2, 2), nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"model does not run in torch.bfloat16: RuntimeError"):
        nd.deploy(net, torch.rand(1, 2), dtype=torch.bfloat16)


def test_a_record_of_an_unknown_type(classifier: tuple[nn.Module, nd.Spec]) -> None:
    fast: Any = nd.deploy(classifier[0], torch.rand(1, 3, 32, 32), repeats=1)
    record = fast.deployment
    with pytest.raises(DataError, match=r"deployment field dtype is 'int4'; expected one of: bfloat16, float16"):
        type(record).from_json(record.to_json().replace('"dtype": null', '"dtype": "int4"'))


@pytest.mark.slow
def test_a_benchmark_in_lower_precision(small_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(small_net), "--device", "cpu", "--repeats", "1", "--dtype", "bfloat16"]
    assert main(["benchmark", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("dense, deployed, bfloat16 ", "file, deployed, bfloat16 ")) for line in lines) == 2
    assert sum("of the largest value from float32" in line for line in lines) == 2
