"""A cost model: what a network of an architecture costs at any widths and ranks, in closed form, for many at once.

:func:`norton_det.count_complexity` counts one network by running it; a search looks at a million.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.channels.narrow import NORMS
from norton_det.channels.plan import Layer
from norton_det.cost.complexity import PUBLISHED_PER_NORM_OUTPUT, count_complexity
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn import DETECTOR_SIZE, RCNNAtFixedProposals
from norton_det.spec import Rank, Spec
from norton_det.structure.build import build

Array = NDArray[np.int64]


class Costs(NamedTuple):
    """Costs of networks, int64 arrays of one shape, by the conventions of ``Complexity``."""

    macs: Any
    macs_published: Any
    params: Any


@dataclass(frozen=True)
class LayerCost:
    """A layer of the plan, and what its cost depends on besides its widths and rank."""

    layer: Layer
    kernel: tuple[int, int]
    inputs: tuple[int, int]
    """Height and width of its input."""
    outputs: tuple[int, int]
    bias: bool
    fixed_outputs: int
    """Number of outputs where the plan says that they never change."""
    norm_params: int | None
    """Parameters of a channel for a batch norm, None for another layer."""

    def widths(self, of_groups: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the widths of its input and output, given those of all channel groups."""
        reads = sum((of_groups[group] for group in self.layer.reads), 0) if self.layer.reads else 3
        return reads, of_groups[self.layer.writes] if self.layer.writes else self.fixed_outputs

    def at(
        self, width_in: Array | int, width_out: Array | int, rank: Any, block: type[Decomposition]
    ) -> tuple[Any, Any, Any]:
        """Return MACs, batch-norm output elements and parameters."""
        if self.norm_params is not None:
            return 0, width_in * self.outputs[0] * self.outputs[1], width_in * self.norm_params
        (kh, kw), (ho, wo) = self.kernel, self.outputs
        bias = width_out * self.bias
        if rank is None:
            return width_in * width_out * kh * kw * ho * wo, 0, width_in * width_out * kh * kw + bias
        macs, weights = block.cost(width_in, width_out, self.kernel, self.inputs, self.outputs, rank)
        return macs, 0, weights + bias


class CostModel:
    """Costs of an architecture's networks at the image size for which complexity is stated.

    Args:
        arch: registered name. Its dense network is run to see sizes, and counted once.
        decomposition: registered name, of the layers that have a rank.

    Raises:
        UsageError: an unknown architecture or decomposition.
    """

    def __init__(self, arch: str, decomposition: str = "cp") -> None:
        self.block = DECOMPOSITIONS[decomposition]
        self.plan = ARCHITECTURES[arch].plan
        dense = Spec(arch, ARCHITECTURES[arch].num_classes)
        self.layers = _measure(build(dense), self.plan.layers, ARCHITECTURES[arch].image_size)
        counted = count_complexity(dense)
        self._by_name = {cost.layer.name: cost for cost in self.layers}
        # What the plan does not name (a detector's FPN and heads) costs the same at all widths.
        self._rest = Costs(0, 0, 0)
        own = self.at({}, {})
        self._rest = Costs(*(getattr(counted, name) - int(getattr(own, name)) for name in Costs._fields))

    def at(self, ranks: Mapping[str, Any], widths: Mapping[str, Array | int]) -> Costs:
        """Return the costs.

        Args:
            ranks: layer -> rank, numbers or arrays that broadcast; layers not named are dense.
            widths: channel group -> width, likewise; groups not named are whole.
        """
        all_widths = {**self.plan.widths, **widths}
        macs, norm_outputs, params = 0, 0, 0
        for cost in self.layers:
            more = cost.at(*cost.widths(all_widths), ranks.get(cost.layer.name), self.block)
            macs, norm_outputs, params = macs + more[0], norm_outputs + more[1], params + more[2]
        total = Costs(macs, macs + PUBLISHED_PER_NORM_OUTPUT * norm_outputs, params)
        return Costs(*(a + b for a, b in zip(total, self._rest, strict=True)))

    def of_layer(self, name: str, ranks: Sequence[Rank | None], widths: Mapping[str, int]) -> list[tuple[int, int]]:
        """Return multiply-accumulates and parameters of one convolution at each of some ranks; None: dense."""
        cost = self._by_name[name]
        reads, writes = cost.widths({**self.plan.widths, **widths})
        found = [cost.at(reads, writes, rank, self.block) for rank in ranks]
        return [(int(macs), int(params)) for macs, _, params in found]


def _measure(net: nn.Module, layers: tuple[Layer, ...], size: int) -> list[LayerCost]:
    """Run ``net`` once and note the sizes of each layer's input and output."""
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            sizes[name] = (_size(args[0]), _size(output))

        module.register_forward_hook(hook)

    modules = {layer.name: net.get_submodule(layer.name) for layer in layers}
    for name, module in modules.items():
        note(name, module)
    detector = isinstance(net, GeneralizedRCNN)
    with torch.no_grad():
        runnable = RCNNAtFixedProposals(net) if detector else net
        runnable.eval()(torch.zeros(1, 3, *(DETECTOR_SIZE if detector else size,) * 2))
    costs = []
    for layer in layers:
        module = modules[layer.name]
        norm = len(list(module.parameters())) if isinstance(module, NORMS) else None
        if norm is not None or isinstance(module, (nn.Conv2d, nn.Linear)):
            kernel = module.kernel_size if isinstance(module, nn.Conv2d) else (1, 1)
            fixed = int(getattr(module, "out_features", getattr(module, "out_channels", 0)))
            bias = getattr(module, "bias", None) is not None
            costs.append(LayerCost(layer, (kernel[0], kernel[1]), *sizes[layer.name], bias, fixed, norm))
    return costs


def _size(tensor: torch.Tensor) -> tuple[int, int]:
    return (int(tensor.shape[-2]), int(tensor.shape[-1])) if tensor.ndim == 4 else (1, 1)
