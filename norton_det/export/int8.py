"""``norton_det.export_int8``: a network as an ONNX file that computes in eight bits.

Post-training and static: the ranges of the tensors come from calibration images, weights have a scale for each output
channel, and biases are corrected by the mean change of each layer's outputs. What decides on boxes stays in float32,
and so do layers whose own outputs change too much. The graph is rewritten by onnxruntime's quantiser.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn

from norton_det.errors import UsageError, expect_choice
from norton_det.export.activations import RANGES, Recorder, histograms
from norton_det.export.contract import INPUT, Contract
from norton_det.export.network import Exported, export_network, resized
from norton_det.export.onnx_graph import import_onnx, layer_as_onnx, open_session, set_metadata
from norton_det.export.onnx_network import OnnxNetwork
from norton_det.export.quantized_layers import (
    LAYERS,
    LayerError,
    Layers,
    correct_biases,
    layer_errors,
    with_own_weights,
)
from norton_det.export.quantized_outputs import OutputError, output_error
from norton_det.files import write_atomically
from norton_det.models.parts_without_boxes import parts_without_boxes
from norton_det.runtime.given import unwrapped
from norton_det.runtime.timing import time_alternating

logger = logging.getLogger(__name__)
LAYER_ERROR = 0.1
_HELD_OUT = 4  # one image in so many
_REPEATS = 5
_JUDGED = 16  # images on which each layer is run by itself


@dataclass(frozen=True)
class Quantized:
    """A quantised file.

    Attributes:
        exported: the file in float32 of which it was made, which was checked; its path is that of the quantised one.
        layers: number of quantised layers.
        float_layers: layers that stay in float32 -> the relative change of their own outputs that was the reason.
        operators: of the graph that onnxruntime runs -> their number; only those of eight bits.
        corrected: number of corrected biases.
        ranges: how they were chosen.
        images: number of calibration images.
        error: of the outputs on held-out calibration images.
        milliseconds: median time on the first of them, "float32" and "int8".
        bytes: size of the files, likewise.
    """

    exported: Exported
    layers: int
    float_layers: Mapping[str, float]
    operators: Mapping[str, int]
    corrected: int
    ranges: str
    images: int
    error: OutputError
    milliseconds: Mapping[str, float]
    bytes: Mapping[str, int]


def export_int8(
    net: nn.Module,
    path: str | Path,
    images: Sequence[Tensor],
    *,
    ranges: str = "mse",
    max_layer_error: float = LAYER_ERROR,
    correct: bool = True,
    **options: Any,
) -> Quantized:
    """Write a network as an ONNX file in eight bits, and measure what that changes.

    Args:
        net: as for :func:`norton_det.export_network`.
        path: the file, ``.onnx``; its folder must exist.
        images: for calibration, (3, H, W), as the network takes them; every fourth one is held out, and the outputs are
            compared on those.
        ranges: of the tensors: "mse" has the least squared error, "minmax" clips nothing, "percentile" clips one of
            10,000 values.
        max_layer_error: a layer whose own outputs change by more, as a relative root mean square with all before it in
            float32, is not quantised.
        correct: correct the biases.
        options: of :func:`norton_det.export_network`, for the file in float32.

    Raises:
        UsageError: an unknown ``ranges``, fewer than four images, or as of :func:`norton_det.export_network`; or
            nothing was quantised, in the file or by onnxruntime.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import norton_det as nd
        >>> from norton_det.export.int8 import export_int8
        >>> net, spec = nd.compress(None, arch="resnet56_cifar", rank=1, rates="[0.]+[0.8]*29", num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export_int8(net, f"{folder}/r56.onnx", torch.rand(4, 3, 32, 32), spec=spec)
        ...     nd.load_onnx(f"{folder}/r56.onnx")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3])
        >>> done.layers > 50, done.operators["QLinearConv"] > 50
        (True, True)
    """
    expect_choice("ranges", ranges, RANGES)
    if len(images) < _HELD_OUT:
        raise UsageError(f"there are {len(images)} calibration images; expected at least {_HELD_OUT}")
    images = [image.detach().float().cpu() for image in images]
    held_out = images[::_HELD_OUT]
    calibration = [image for i, image in enumerate(images) if i % _HELD_OUT]
    scopes = [f"/net/{name.replace('.', '/')}/" if name else "/" for name in parts_without_boxes(unwrapped(net))]
    with tempfile.TemporaryDirectory() as folder:
        exact = f"{folder}/float32.onnx"
        done = export_network(net, exact, **{"check_images": held_out[:2], "runner": in_int8, **options})
        if "height" not in done.contract.dynamic:
            size = done.contract.size
            held_out, calibration = ([resized(one, size) for one in part] for part in (held_out, calibration))
        logger.info("int8: choosing ranges and correcting biases on %d images, for minutes", len(calibration))
        job = _Job(exact, done.contract, scopes, calibration, ranges, max_layer_error, correct)
        found: list[Quantized] = []

        def write(name: str) -> None:
            kept, corrected = job.write(name)
            sizes = {"float32": Path(exact).stat().st_size, "int8": Path(name).stat().st_size}
            both = {"float32": OnnxNetwork(exact), "int8": OnnxNetwork(name)}
            layers, operators = _quantized_layers(name), _operators(name)
            time = _time(both, held_out[0], is_detector=done.contract.is_detector)
            error = output_error(both["float32"], both["int8"], held_out)
            exported = Exported(Path(path), done.format, done.contract, done.check)
            found.append(
                Quantized(exported, layers, kept, operators, corrected, ranges, len(calibration), error, time, sizes)
            )

        write_atomically(path, write)
    if found[0].milliseconds["int8"] >= found[0].milliseconds["float32"]:
        logger.warning("int8 is not faster than float32 with onnxruntime on this machine: %s ms", found[0].milliseconds)
    return found[0]


@dataclass(frozen=True)
class _Job:
    """Which file is quantised, and how."""

    exact: str
    contract: Contract
    scopes: Sequence[str]
    calibration: Sequence[Tensor]
    ranges: str
    max_layer_error: float
    correct: bool

    def write(self, path: str) -> tuple[dict[str, float], int]:
        """Write the quantised file, and return the layers that stay in float32 and the number of corrected biases."""
        onnx, _ = import_onnx()
        model = with_own_weights(onnx.load(self.exact))
        layers = Layers(model, self.scopes)
        if not layers.nodes:
            raise UsageError(f"model has none of {', '.join(LAYERS)} with constant weights; expected some to quantise")
        recorder = Recorder(model, layers.tensors)
        inputs = [image[None] for image in self.calibration]
        limits = _limits(recorder, inputs, self.ranges)
        errors = layer_errors(layers, recorder.run(inputs[:_JUDGED]), limits)
        kept = {name: error.relative for name, error in errors.items() if error.relative > self.max_layer_error}
        if len(kept) == len(layers.nodes):
            least = f"{self.max_layer_error:g}, the least by {min(kept.values()):.2g}"
            raise UsageError(f"no layer is quantised: the outputs of each change by more than {least}")
        quantized: dict[str, LayerError] = {name: error for name, error in errors.items() if name not in kept}
        corrected = correct_biases(model, layers, quantized) if self.correct else 0
        result = rewritten(model, limits, [*quantized, *layers.others])
        set_metadata(result, self.contract.to_metadata())
        onnx.save(result, path)
        return kept, corrected


def in_int8(layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that computes a layer in onnxruntime, in eight bits."""
    onnx, _ = import_onnx()
    model = with_own_weights(onnx.load_from_string(layer_as_onnx(layer, arguments)))
    layers = Layers(model, [""])
    recorder = Recorder(model, layers.tensors)
    result = rewritten(model, _limits(recorder, arguments[:1], "minmax"), [*layers.nodes, *layers.others])
    session = open_session(result.SerializeToString())
    return partial(session.run, None, {INPUT: arguments[0].numpy()})


def _limits(recorder: Recorder, inputs: Sequence[Tensor], ranges: str) -> dict[str, tuple[float, float]]:
    found = histograms(lambda: recorder.run(inputs))
    return {name: RANGES[ranges](histogram) for name, histogram in found.items()}


def rewritten(model: Any, limits: Mapping[str, tuple[float, float]], nodes: Sequence[str]) -> Any:
    """Return the graph with eight bits in these nodes, by onnxruntime's quantiser.

    Args:
        model: of onnx, with the types of its tensors.
        limits: the range of each tensor that the nodes read or write.
        nodes: their names.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in limits.items()
    }
    kinds = [*{node.op_type for node in model.graph.node if node.name in {*nodes}}]
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[*nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=kinds,
        extra_options={},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _quantized_layers(path: str) -> int:
    """Return the number of layers whose inputs and weights have eight bits in a file.

    Raises:
        UsageError: there is none.
    """
    onnx, _ = import_onnx()
    graph = onnx.load(path).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    count = sum(node.op_type in LAYERS and dequantized.issuperset(node.input[:2]) for node in graph.node)
    if not count:
        raise UsageError("onnxruntime's quantiser quantised no layer")
    return count


def _operators(path: str) -> dict[str, int]:
    """Return how many operators of each kind of eight bits the graph has that onnxruntime runs.

    Raises:
        UsageError: it has none: all is converted back to float32 before it is computed.
    """
    onnx, onnxruntime = import_onnx()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    found = {kind: count for kind, count in sorted(kinds.items()) if kind.startswith(("QLinear", "QGemm", "MatMulInt"))}
    if not found:
        raise UsageError("onnxruntime computes no layer of the quantised file in eight bits on this machine")
    return found


def _time(networks: Mapping[str, OnnxNetwork], image: Tensor, *, is_detector: bool) -> dict[str, float]:
    """Return the median milliseconds of each network on an image, measured in turn."""
    images: Any = [image] if is_detector else image[None]
    runs = {name: partial(net, images) for name, net in networks.items()}
    return {name: 1e3 * median(seconds) for name, seconds in time_alternating(runs, _REPEATS).items()}
