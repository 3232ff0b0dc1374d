"""The layers of a graph that can be quantised: what eight bits change in each, by itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from norton_det.export.activations import Array, quantized
from norton_det.export.onnx_graph import import_onnx

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights."""
AROUND = ("Relu", "Add", "MaxPool", "GlobalAveragePool", "AveragePool", "Resize", "Flatten", "Reshape", "Concat")
"""Operators that are quantised between layers, so that the values stay in eight bits."""
_STEPS = 127


@dataclass
class LayerError:
    """What quantising the inputs and the weights of a layer changes in its outputs, on calibration images.

    Attributes:
        squared: sum of the squared changes.
        total: sum of the squared outputs.
        shift: sum of the changes, (O,).
        count: number of values of each channel.
    """

    squared: float = 0.0
    total: float = 0.0
    shift: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0

    @property
    def relative(self) -> float:
        """Root of the mean squared change, as a fraction of that of the outputs."""
        return (self.squared / self.total) ** 0.5 if self.total else 0.0


class Layers:
    """The layers of a graph within some of its scopes.

    Args:
        model: of onnx, with the types of its tensors.
        scopes: beginnings of the names of nodes.

    Attributes:
        weights: initialisers by name.
        nodes: those with constant weights, by name.
        others: names of the nodes that may be quantised between them.
        tensors: names of what all of these read and write.
    """

    def __init__(self, model: Any, scopes: Sequence[str]) -> None:
        onnx, _ = import_onnx()
        self.weights = {one.name: one for one in model.graph.initializer}
        self._array = onnx.numpy_helper.to_array
        inside = [node for node in model.graph.node if node.name.startswith(tuple(scopes))]
        self.nodes = {node.name: node for node in inside if node.op_type in LAYERS and node.input[1] in self.weights}
        typed = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self._floats = {one.name for one in typed if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        around = [node for node in inside if node.op_type in AROUND and self._floats.issuperset(_values(node))]
        self.others = [node.name for node in around]
        values = [name for node in (*self.nodes.values(), *around) for name in _values(node)]
        self.tensors = [name for name in dict.fromkeys(values) if name in self._floats]

    def weight(self, node: Any) -> Tensor:
        """Return the weight of a layer with the output channels first."""
        weight = torch.from_numpy(self._array(self.weights[node.input[1]]).copy())
        return weight.t().contiguous() if node.op_type != "Conv" and not _attribute(node, "transB", 0) else weight

    def run(self, node: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return the outputs of a layer without its bias, channels in the second dimension."""
        if node.op_type != "Conv":
            return F.linear(x, weight)
        pads = _attribute(node, "pads", [0, 0, 0, 0])
        top, left, bottom, right = pads
        stride, dilation = (tuple(_attribute(node, name, [1, 1])) for name in ("strides", "dilations"))
        x = F.pad(x, (left, right, top, bottom)) if any(pads) else x
        return F.conv2d(x, weight, None, stride, 0, dilation, _attribute(node, "group", 1))


def with_own_weights(model: Any) -> Any:
    """Give each reader of equal weights its own, and return the graph with the types of its tensors.

    torch's exporter keeps equal weights, such as biases of zeros, once and copies them by nodes that a quantiser takes
    for values: the layers behind them would stay in float32.
    """
    weights = {one.name: one for one in model.graph.initializer}
    for node in [*model.graph.node]:
        if node.op_type == "Identity" and node.input[0] in weights:
            model.graph.initializer.add().CopyFrom(weights[node.input[0]])
            model.graph.initializer[-1].name = node.output[0]
            model.graph.node.remove(node)
    return import_onnx()[0].shape_inference.infer_shapes(model)


def rounded_weight(weight: Tensor) -> Tensor:
    """Return a weight as eight signed bits tell it, with a scale for each output channel (the first dimension)."""
    scale = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) / _STEPS
    return torch.where(scale > 0, torch.round(weight / scale).clamp(-_STEPS, _STEPS) * scale, 0.0)


@torch.no_grad()
def layer_errors(
    layers: Layers, images: Iterable[Mapping[str, Array]], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, LayerError]:
    """Return what quantisation changes in each layer alone.

    Args:
        layers: of the graph.
        images: the tensors in the graph, for each image.
        ranges: of the tensors.
    """
    errors = {name: LayerError() for name in layers.nodes}
    weights = {name: layers.weight(node) for name, node in layers.nodes.items()}
    rounded = {name: rounded_weight(weight) for name, weight in weights.items()}
    for tensors in images:
        for name, node in layers.nodes.items():
            x = torch.from_numpy(tensors[node.input[0]])
            if not x.numel():
                continue
            outputs = layers.run(node, x, weights[name])
            change = layers.run(node, quantized(x, *ranges[node.input[0]]), rounded[name]) - outputs
            found, dims = errors[name], [dim for dim in range(outputs.ndim) if dim != 1]
            found.squared += float(change.double().square().sum())
            found.total += float(outputs.double().square().sum())
            found.shift = found.shift + change.sum(dims)
            found.count += change.numel() // change.shape[1]
    return errors


def correct_biases(model: Any, layers: Layers, errors: Mapping[str, LayerError]) -> int:
    """Subtract from the biases of layers what quantisation adds to the mean of their outputs, in place.

    The mean output of each channel then is as before (Nagel et al., "Data-Free Quantization Through Weight Equalization
    and Bias Correction", arXiv:1906.04721, with measured means). A bias that several nodes share gets their mean.

    Returns:
        How many biases were corrected.
    """
    helper = import_onnx()[0].numpy_helper
    sums: dict[str, tuple[Tensor, int]] = {}
    for name, error in errors.items():
        node = layers.nodes[name]
        if len(node.input) > 2 and node.input[2] in layers.weights and error.count:
            shift, count = sums.get(node.input[2], (torch.zeros(()), 0))
            sums[node.input[2]] = (shift + error.shift, count + error.count)
    for initializer in model.graph.initializer:
        if initializer.name in sums:
            shift, count = sums[initializer.name]
            corrected = helper.to_array(initializer) - (shift / count).numpy()
            initializer.CopyFrom(helper.from_array(corrected, initializer.name))
    return len(sums)


def _values(node: Any) -> list[str]:
    """Return the tensors that a node reads and writes, without weights and shapes."""
    return [*(node.input if node.op_type in ("Add", "Concat") else node.input[:1]), *node.output]


def _attribute(node: Any, name: str, default: Any) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else (list(found.ints) or found.i)
