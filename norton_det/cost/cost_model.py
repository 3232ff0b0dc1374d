"""A cost model: what a network of an architecture costs at any widths and ranks, in closed form, for many at once.

:func:`norton_det.count_complexity` counts one network by running it; a search looks at a million.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from norton_det.channels.narrow import NORMS
from norton_det.channels.plan import Layer
from norton_det.cost.activation_memory import peak
from norton_det.cost.complexity import PUBLISHED_PER_NORM_OUTPUT, count_complexity
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.models import Architecture
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network
from norton_det.structure.network import Network

Array = NDArray[np.int64]
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_MODELLED = (*_CONVOLUTIONS, nn.Linear, *NORMS)


class Costs(NamedTuple):
    """Costs of networks, int64 arrays of one shape, by the conventions of ``Complexity``."""

    macs: Any
    macs_published: Any
    params: Any


class Sizes(NamedTuple):
    """Height and width of a layer's input and output in one call."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]


@dataclass(frozen=True)
class LayerCost:
    """A layer, and what its cost depends on besides its widths and rank.

    Attributes:
        layer: as in the channel plan; a layer that the plan does not name reads and writes no group.
        kernel: height and width; of a linear layer, the spatial positions of each channel that it reads, and 1.
        calls: the sizes each time that the layer runs (the RPN's convolution runs once for each level).
        bias: whether it has one.
        fixed_inputs: number of input channels where it reads no group.
        fixed_outputs: number of output channels where it writes no group.
        norm_params: parameters of a channel for a batch norm, None for another layer.
        planned: whether the plan names it.
        transposed: whether it is a transposed convolution, which multiplies once for each position of its input.
        published_only: whether its MACs are counted in the published convention alone (Keypoint R-CNN's head).
    """

    layer: Layer
    kernel: tuple[int, int]
    calls: tuple[Sizes, ...]
    bias: bool
    fixed_inputs: int
    fixed_outputs: int
    norm_params: int | None
    planned: bool
    transposed: bool
    published_only: bool

    @property
    def inputs(self) -> tuple[int, int]:
        """Height and width of the input of its first call."""
        return self.calls[0].inputs

    def widths(self, of_groups: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the widths of its input and output, given those of all channel groups."""
        reads = sum(of_groups[group] for group in self.layer.reads) if self.layer.reads else self.fixed_inputs
        fixed = reads if self.layer.in_place else self.fixed_outputs
        return reads, of_groups[self.layer.writes] if self.layer.writes else fixed

    def at(self, width_in: Array | int, width_out: Array | int, decomposed: DecomposedLayer | None) -> Costs:
        """Return what it adds to the network's costs."""
        if self.norm_params is not None:
            elements = width_in * sum(call.outputs[0] * call.outputs[1] for call in self.calls)
            return Costs(0, PUBLISHED_PER_NORM_OUTPUT * elements, width_in * self.norm_params)
        costs = [self._once(width_in, width_out, call, decomposed) for call in self.calls]
        # A layer that does not run when the network is counted has parameters all the same.
        weights = costs[0][1] if costs else self._once(width_in, width_out, Sizes((1, 1), (1, 1)), decomposed)[1]
        macs = sum(macs for macs, _ in costs)
        return Costs(0 if self.published_only else macs, macs, weights + width_out * self.bias)

    def memory(self, width_in: Array | int, width_out: Array | int, decomposed: DecomposedLayer | None) -> Any:
        """Return the bytes that it needs at once; 0 for what is not counted (norms, heads of each object)."""
        largest: Any = 0
        for call in self.calls if self.norm_params is None and not self.published_only else ():
            given, written = (math.prod(size) for size in call)
            spatial = width_in * self.layer.spatial
            parts: tuple[Any, ...] = ()
            if decomposed is not None:
                block = DECOMPOSITIONS[decomposed.method]
                parts = block.between(width_out, call.inputs, call.outputs, decomposed.rank)
            largest = np.maximum(largest, peak(spatial * given, [*parts, width_out * written], np.maximum))
        return largest

    def _once(
        self, width_in: Array | int, width_out: Array | int, call: Sizes, decomposed: DecomposedLayer | None
    ) -> tuple[Any, Any]:
        """Return MACs of one call, and weights."""
        if decomposed is not None:
            block = DECOMPOSITIONS[decomposed.method]
            return block.cost(width_in, width_out, self.kernel, call.inputs, call.outputs, decomposed.rank)
        weights = width_out * self.kernel[0] * self.kernel[1]
        if not self.layer.in_place:  # else, a depthwise convolution
            weights = weights * width_in
        height, width = call.inputs if self.transposed else call.outputs
        return weights * height * width, weights


class CostModel:
    """Costs of an architecture's networks at the image size for which complexity is stated.

    All layers of the channel plan are modelled, and those beside it too, since these can be decomposed by name.

    Args:
        architecture: its dense network is run to see sizes, and counted once.
        spec: has the number of classes and the builder's options of the networks; None: the architecture's defaults.
    """

    def __init__(self, architecture: Architecture, spec: Spec | None = None) -> None:
        self.plan = architecture.plan
        given = spec or Spec(architecture.name, architecture.num_classes)
        dense = replace(given, decompositions={}, widths={}, kept={})
        network = build_network(dense, architecture)
        self.layers = _measure(network)
        self._by_name = {cost.layer.name: cost for cost in self.layers}
        # What remains (linear layers beside the plan, pooling, upsampling) costs the same at all widths and ranks.
        self._rest = Costs(0, 0, 0)
        modelled, counted = self.at({}, {}), count_complexity(dense)
        self._rest = Costs(*(getattr(counted, name) - int(getattr(modelled, name)) for name in Costs._fields))

    def at(self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Array | int]) -> Costs:
        """Return the costs.

        Args:
            decompositions: of the layers by name, as in a spec; layers not named are dense.
            widths: channel group -> width, numbers or arrays that broadcast; groups not named are whole.

        Raises:
            UsageError: a layer is named that there is not.
        """
        for name in decompositions:
            self._cost_of(name)
        all_widths = {**self.plan.widths, **widths}
        total = self._rest
        for cost in self.layers:
            more = cost.at(*cost.widths(all_widths), decompositions.get(cost.layer.name))
            total = Costs(*(a + b for a, b in zip(total, more, strict=True)))
        return total

    def activation_memory(
        self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Array | int]
    ) -> Any:
        """Return ``Complexity.activation_memory``, for arrays of widths too; arguments and errors as of :meth:`at`."""
        return np.max(np.broadcast_arrays(*self.memory_of_layers(decompositions, widths).values()), 0)

    def memory_of_layers(
        self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Array | int]
    ) -> dict[str, Any]:
        """Return the bytes that each layer needs at once; arguments and errors as of :meth:`at`."""
        for name in decompositions:
            self._cost_of(name)
        all_widths = {**self.plan.widths, **widths}
        costs = {cost.layer.name: cost for cost in self.layers}
        return {name: cost.memory(*cost.widths(all_widths), decompositions.get(name)) for name, cost in costs.items()}

    def memory_of_layer(
        self, name: str, options: Sequence[DecomposedLayer | None], widths: Mapping[str, int]
    ) -> list[float]:
        """Return the bytes that one layer needs at once with each of some options; None: dense."""
        cost, (reads, writes) = self._cost_of(name), self.widths_of(name, widths)
        return [float(cost.memory(reads, writes, option)) for option in options]

    def of_layer(self, name: str, options: Sequence[DecomposedLayer | None], widths: Mapping[str, int]) -> list[Costs]:
        """Return what one layer adds to the costs with each of some options; None: dense."""
        cost, (reads, writes) = self._cost_of(name), self.widths_of(name, widths)
        return [cost.at(reads, writes, option) for option in options]

    def widths_of(self, name: str, widths: Mapping[str, int]) -> tuple[int, int]:
        """Return the numbers of input and output channels of one layer, given those of channel groups."""
        reads, writes = self._cost_of(name).widths({**self.plan.widths, **widths})
        return reads, writes

    def _cost_of(self, name: str) -> LayerCost:
        if name not in self._by_name:
            raise UsageError(f"the cost model has no layer {name!r}; expected one of: {', '.join(self._by_name)}")
        return self._by_name[name]


def _measure(network: Network) -> list[LayerCost]:
    """Run a network once and note the sizes of the inputs and outputs of all layers that cost something."""
    net, plan, task = network.module, network.plan, network.architecture.task
    planned = {layer.name for layer in plan.layers}
    beside = [Layer(name) for name, _ in net.named_modules() if name not in planned]
    layers = [layer for layer in (*plan.layers, *beside) if isinstance(net.get_submodule(layer.name), _MODELLED)]
    names = [layer.name for layer in layers]
    size = network.architecture.image_size
    calls = _calls(net, names, task.counted(net), size)
    heads = task.counted_per_detection(net) if task.published_counts_heads() else None
    published = _calls(net, names, heads, size) if heads is not None else {}
    costs = []
    for layer in layers:
        in_both = calls[layer.name] or published.get(layer.name, ())
        cost = _layer_cost(layer, net.get_submodule(layer.name), in_both, layer.name in planned)
        costs.append(replace(cost, published_only=bool(in_both) and not calls[layer.name]))
    return costs


def _calls(net: nn.Module, names: Sequence[str], runnable: nn.Module, size: int) -> dict[str, tuple[Sizes, ...]]:
    """Return the sizes in each call of these layers of ``net`` when ``runnable`` runs on an image."""
    calls: dict[str, tuple[Sizes, ...]] = dict.fromkeys(names, ())

    def noting(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = (*calls[name], Sizes(_size(args[0]), _size(output)))

        return hook

    handles = [net.get_submodule(name).register_forward_hook(noting(name)) for name in names]
    try:
        with torch.no_grad():
            runnable.eval()(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _layer_cost(layer: Layer, module: nn.Module, calls: tuple[Sizes, ...], planned: bool) -> LayerCost:
    norm = len(list(module.parameters())) if isinstance(module, NORMS) else None
    kernel = module.kernel_size if isinstance(module, _CONVOLUTIONS) else (layer.spatial, 1)
    inputs = int(getattr(module, "in_features", getattr(module, "in_channels", 0))) // layer.spatial
    outputs = int(getattr(module, "out_features", getattr(module, "out_channels", 0)))
    bias = getattr(module, "bias", None) is not None
    transposed = isinstance(module, nn.ConvTranspose2d)
    sizes = ((kernel[0], kernel[1]), calls, bias, inputs, outputs, norm, planned, transposed)
    return LayerCost(layer, *sizes, published_only=False)


def _size(tensor: torch.Tensor) -> tuple[int, int]:
    """Return height and width of images, one below the other; of rows of a linear layer, their number and 1."""
    if tensor.ndim == 4:
        return int(tensor.shape[0] * tensor.shape[-2]), int(tensor.shape[-1])
    return math.prod(tensor.shape[:-1]), 1
