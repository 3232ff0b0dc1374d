"""Files in eight bits: what is quantised, what is not, and what it changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Refused, fill
from exported_networks import narrow_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_norms import with_statistics
from torch import Tensor, nn

import norton_det as nd
from norton_det.cli.main import main
from norton_det.errors import UsageError
from norton_det.export.activations import RANGES, Histogram, Recorder, histograms, quantized
from norton_det.export.images import generated_images
from norton_det.export.int8 import export_int8, in_int8
from norton_det.export.onnx_graph import layer_as_onnx
from norton_det.export.quantized_layers import Layers, correct_biases, layer_errors, rounded_weight, with_own_weights


def chain() -> nn.Module:
    """Return a classifier with a convolution, a depthwise one, and equal biases of zeros."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, groups=16)
    for conv in (first, second):
        nn.init.zeros_(conv.bias)
    ends = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    return with_statistics(nn.Sequential(first, nn.ReLU(), second, *ends))


def images(count: int = 8) -> list[Tensor]:
    return [*torch.rand(count, 3, 32, 40, generator=torch.Generator().manual_seed(1))]


def graph(net: nn.Module, inputs: Tensor) -> tuple[Any, Layers, Recorder, dict[str, tuple[float, float]]]:
    model = with_own_weights(onnx.load_from_string(layer_as_onnx(net, (inputs,))))
    layers = Layers(model, [""])
    recorder = Recorder(model, layers.tensors)
    found = histograms(lambda: recorder.run([inputs]))
    return model, layers, recorder, {name: RANGES["minmax"](one) for name, one in found.items()}


@pytest.mark.filterwarnings("ignore")
def test_a_file_in_eight_bits(tmp_path: Path) -> None:
    net, path = chain(), tmp_path / "net.onnx"
    done = export_int8(net, path, images(), class_names=["a", "b", "c", "d"])
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert (done.layers, dict(done.float_layers), done.corrected) == (3, {}, 3)
    assert done.operators["QLinearConv"] == 2, "equal biases are of each layer"
    assert (done.images, done.error.images) == (6, 2)
    again = nd.load_onnx(path)
    assert again.class_names == ("a", "b", "c", "d")
    batch = torch.stack(images(3))
    with torch.no_grad():
        exact, got = net(batch), again(batch)
    assert 0 < (got - exact).abs().max() < 0.05 * exact.abs().max()
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(plain.run(None, {"images": batch.numpy()})[0], got.numpy())


@pytest.mark.filterwarnings("ignore")
def test_weights_are_rounded_with_a_scale_for_each_channel(tmp_path: Path) -> None:
    net: Any = chain()
    export_int8(net, tmp_path / "net.onnx", images(4))
    model = onnx.load(str(tmp_path / "net.onnx"))
    values = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    (weight,) = (name for name, value in values.items() if value.dtype == np.int8 and value.shape == (16, 3, 3, 3))
    scale = next(node for node in model.graph.node if node.input[0] == weight).input[1]
    expected = rounded_weight(net[0].weight.detach())
    np.testing.assert_allclose(values[weight] * values[scale][:, None, None, None], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_corrected_biases_keep_the_mean_of_each_channel() -> None:
    net, inputs = chain(), torch.stack(images())
    model, layers, recorder, limits = graph(net, inputs)
    errors = layer_errors(layers, recorder.run([inputs]), limits)
    first = next(iter(errors))
    node = layers.nodes[first]
    before = onnx.numpy_helper.to_array(layers.weights[node.input[2]]).copy()
    assert correct_biases(model, layers, errors) == 3
    after = next(onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name == node.input[2])
    weight = layers.weight(node)
    exact = layers.run(node, inputs, weight)
    changed = layers.run(node, quantized(inputs, *limits[node.input[0]]), rounded_weight(weight))
    shift = (changed - exact).mean((0, 2, 3))
    corrected = shift + torch.from_numpy(after - before)
    assert corrected.abs().max() < 1e-5
    assert shift.abs().max() > 100 * corrected.abs().max()


@settings(deadline=None, max_examples=60)
@given(st.floats(-50, 0), st.floats(0.01, 50), st.integers(0, 1000))
def test_values_within_the_range_change_by_half_a_step(low: float, high: float, seed: int) -> None:
    values = torch.rand(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (high - low) + low
    once = quantized(values, low, high)
    step = (high - low) / 255
    # Zero is on the grid, so that the ends may be up to half a step outside of it.
    assert (once - values).abs().max() <= step * 1.001
    assert torch.allclose(quantized(once, low, high), once, atol=1e-9)
    assert quantized(torch.zeros(1), low, high).item() == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(1, 1000))
def test_ranges(seed: int, outlier: float) -> None:
    generator = np.random.default_rng(seed)
    values = np.append(generator.normal(size=4000), [0.0, outlier]).astype(np.float32)
    found = histograms(lambda: [{"x": values[:2000]}, {"x": values[2000:]}])["x"]
    assert found.counts is not None
    assert found.counts.sum() == len(values)
    errors = {}
    for name in RANGES:
        low, high = RANGES[name](found)
        assert found.low <= low <= 0 <= high <= found.high
        errors[name] = float((found.counts * (found.centres - quantized(found.centres, low, high)) ** 2).sum())
    assert RANGES["minmax"](found) == (values.min(), values.max())
    assert errors["mse"] <= errors["minmax"]


def test_a_tensor_of_zeros_has_a_range() -> None:
    assert {RANGES[name](Histogram()) for name in RANGES} == {(0.0, 0.0)}
    assert torch.equal(quantized(torch.zeros(3), 0.0, 0.0), torch.zeros(3))


@pytest.mark.filterwarnings("ignore")
def test_layers_that_change_too_much_stay_in_float32(tmp_path: Path) -> None:
    net = chain()
    all_of_them = export_int8(net, tmp_path / "net.onnx", images(), max_layer_error=1.0)
    assert not all_of_them.float_layers
    with pytest.raises(UsageError, match=r"no layer is quantised: the outputs of each change by more than 1e-09"):
        export_int8(net, tmp_path / "x.onnx", images(), max_layer_error=1e-9)
    inputs = torch.stack(images())
    _, layers, recorder, limits = graph(net, inputs)
    errors = sorted(error.relative for error in layer_errors(layers, recorder.run([inputs]), limits).values())
    limit = (errors[0] + errors[-1]) / 2
    some = export_int8(net, tmp_path / "net.onnx", images(), max_layer_error=limit)
    assert 0 < len(some.float_layers) < 3
    assert some.layers + len(some.float_layers) == 3
    assert all(error > limit for error in some.float_layers.values())


@pytest.mark.filterwarnings("ignore")
def test_a_layer_is_timed_in_eight_bits() -> None:
    layer = nn.Conv2d(4, 4, 3)
    (outputs,) = in_int8(layer, (torch.rand(2, 4, 9, 9),))()  # type: ignore[misc]
    assert outputs.shape == (2, 4, 7, 7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ["maskrcnn_cpresnet50_fpn"])
def test_boxes_are_not_quantised(arch: str, tmp_path: Path) -> None:
    net, spec = narrow_detector(arch)
    calibration = [image for size in ((64, 80), (80, 64)) for image in generated_images(size, {})]
    done = export_int8(net, tmp_path / "net.onnx", calibration, spec=spec)
    model = onnx.load(str(tmp_path / "net.onnx"))
    inside = ("/net/backbone/", "/net/rpn/head/", "/net/roi_heads/box_head/", "/net/roi_heads/box_predictor/")
    inside += ("/net/roi_heads/mask_head/", "/net/roi_heads/mask_predictor/")
    made = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) > 60
    for node in quantizers:
        source = made.get(node.input[0])
        if source is None or not source.name.startswith(inside):  # images and pooled maps, for the layers alone
            values = [name for reader in readers[node.output[0]] for name in reader.output]
            behind = [one.name for name in values for one in readers[name] if one.op_type != "Shape"]
            assert [name for name in behind if not name.startswith(inside)] == [], source
    assert done.layers > 60
    assert done.operators["QLinearConv"] > 60
    assert done.error.same is not None
    (found,) = nd.load_onnx(tmp_path / "net.onnx")([calibration[0]])
    assert set(found) == {"boxes", "labels", "scores", "masks"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command(small_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nd.data.make_shapes(tmp_path / "shapes", train=6, val=1, size=40)
    words = [str(small_net), "--int8", "--calibrate", str(tmp_path / "shapes/train2017"), "--calibrate-count", "5"]
    assert main(["export", *words, "--output", str(tmp_path / "a.onnx")]) == 0
    text = capsys.readouterr().out
    assert "layers are quantised (3 images, ranges mse)" in text
    assert "on 2 held-out images:" in text
    assert main(["export", *words, "--output", str(tmp_path / "b.onnx"), "--json", "--ranges", "minmax"]) == 0
    report = json.loads(capsys.readouterr().out)["int8"]
    assert report["ranges"] == "minmax"
    assert report["layers"] > 50
    assert report["bytes"]["int8"] == (tmp_path / "b.onnx").stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--int8 without --calibrate; expected a folder with images"),
        (["--calibrate", "x"], "--calibrate x: is for --int8"),
        (["--int8", "--calibrate", "x", "--format", "torchscript"], "--int8 with --format torchscript; expected onnx"),
        (["--int8", "--calibrate", "x", "--max-layer-error", "0"], "--max-layer-error is 0; expected a number above 0"),
    ],
)
def test_bad_options(words: list[str], message: str, small_net: Path, tmp_path: Path, refused: Refused) -> None:
    suffix = ".pt" if "torchscript" in words else ".onnx"
    output = ["--output", str(tmp_path / f"x{suffix}")]
    refused(lambda: main(["export", *fill(["NET", *words], {"NET": small_net}), *output]), 2, message)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are 3 calibration images; expected at least 4"):
        export_int8(chain(), tmp_path / "x.onnx", images(3))
    with pytest.raises(UsageError, match="ranges"):
        export_int8(chain(), tmp_path / "x.onnx", images(4), ranges="max")
    assert not [*tmp_path.iterdir()]
