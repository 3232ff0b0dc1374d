"""Latency of an architecture's networks at any widths and ranks, from a table of measured times of single layers.

Each layer is timed, deployed, on a grid of widths and ranks, and what lies between is interpolated; a layer that runs
several times is timed at each size. What is no layer of the channel plan (pooling, additions, the choice of boxes)
takes as long as in the dense network, which is timed once: a detector with a fixed number of proposals. Times are kept
in the user's cache folder, by machine, so that the table is built once.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from norton_det.channels.narrow import narrow
from norton_det.cost.cost_model import CostModel, LayerCost
from norton_det.cost.fixed_work import fix_work
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.deployment.record import MEMORY_FORMATS, deployment_of
from norton_det.errors import UsageError
from norton_det.models.rcnn_counted import PROPOSALS
from norton_det.models.tasks import Detection
from norton_det.runtime.modes import copied
from norton_det.runtime.timing import time_contenders
from norton_det.search.latency_table import Grid, LatencyTable, Times
from norton_det.spec import DecomposedLayer, Rank
from norton_det.structure.network import Network
from norton_det.structure.settings import decomposable_layers

_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_STEPS = (0, 1, 3, 7)  # which of a layer's possible ranks are timed
_COARSE_FRACTIONS, _COARSE_STEPS = (0.25, 1.0), (0, 1, 3)  # of layers that take long, whose time is that of products
_LONG = 5e8  # multiply-accumulates
_REPEATS = 3
_LARGE = 2**22  # numbers in an input; with such ones a layer is timed once again, not three times


class LatencyModel:
    """Latencies of an architecture's deployed networks on this machine, at the image size for which it is counted.

    Args:
        costs: the cost model of the architecture.
        dense: the architecture's dense network, on the CPU.
        decomposition: registered name of the method that will be asked for.
        ranks: ranks that will be asked for, of all layers; None: all that the decomposition offers.
        options: methods and ranks that will be asked for, by layer, in place of both.
        batch: images at once; detectors: 1.
        device: "cpu" or "cuda".
        table: what has been measured so far; what is missing is measured and written.
    """

    def __init__(
        self,
        costs: CostModel,
        dense: Network,
        *,
        decomposition: str = "cp",
        ranks: Sequence[Rank] | None = None,
        options: Mapping[str, Sequence[DecomposedLayer]] | None = None,
        batch: int = 1,
        device: str = "cpu",
        table: LatencyTable | None = None,
    ) -> None:
        self._table, self._batch, self._device = table or LatencyTable(), batch, device
        self._plan = costs.plan
        self._options = _uniform(dense, decomposition, ranks) if options is None else options
        layers = [cost for cost in costs.layers if cost.planned and cost.calls and not cost.published_only]
        # Others are in the rest: transposed ones, and depthwise ones, whose widths are those of their inputs.
        layers = [one for one in layers if one.norm_params is None and not one.transposed and not one.layer.in_place]
        self._layers: dict[str, tuple[LayerCost, dict[str | None, Grid]]] = {}
        for layer in tqdm(layers, desc="latency table", unit="layer", disable=None, leave=False):
            name = layer.layer.name
            self._layers[name] = layer, self._grids(layer, dense.module.get_submodule(name))
            self._table.save()
        self._rest = dict.fromkeys(MEMORY_FORMATS, 0.0)
        layered = self._sum({}, {})
        whole = self._time_whole(dense)
        self._table.save()
        self._rest = {name: max(0.0, whole[name] - float(layered[name])) for name in MEMORY_FORMATS}
        self.dense = float(self.at({}, {}))

    def at(self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return milliseconds; arguments as for :meth:`norton_det.cost.cost_model.CostModel.at`.

        Raises:
            UsageError: a layer that was not timed as it is decomposed.
        """
        for name, layer in decompositions.items():
            self._check_timed(name, layer)
        sums = self._sum(decompositions, widths)
        best: NDArray[np.float64] = np.min([sums[name] + self._rest[name] for name in MEMORY_FORMATS], 0)
        return best

    def of_layer(self, name: str, options: Sequence[DecomposedLayer | None], widths: Mapping[str, int]) -> list[float]:
        """Return the milliseconds of one layer, which may be untimed, with each of some options; None: dense.

        They are those in the memory format in which the dense network is faster.
        """
        if name not in self._layers:
            return [0.0] * len(options)
        sums = self._dense_sums
        fastest = min(MEMORY_FORMATS, key=lambda one: sums[one] + self._rest[one])
        return [float(self._of_layer(name, option, {**self._plan.widths, **widths})[fastest]) for option in options]

    @cached_property
    def _dense_sums(self) -> dict[str, Any]:
        return self._sum({}, {})

    def _check_timed(self, name: str, layer: DecomposedLayer) -> None:
        methods = [method for method in self._layers[name][1] if method] if name in self._layers else []
        if layer.method not in methods:
            expected = f"by one of: {', '.join(methods)}" if methods else "a layer of the channel plan that was timed"
            raise UsageError(f"no latency of layer {name!r} decomposed by {layer.method!r}; expected {expected}")

    def _sum(self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> dict[str, Any]:
        total: dict[str, Any] = dict.fromkeys(MEMORY_FORMATS, 0.0)
        all_widths = {**self._plan.widths, **widths}
        for name in self._layers:
            times = self._of_layer(name, decompositions.get(name), all_widths)
            total = {memory_format: total[memory_format] + times[memory_format] for memory_format in MEMORY_FORMATS}
        return total

    def _of_layer(self, name: str, decomposed: DecomposedLayer | None, widths: Mapping[str, Any]) -> dict[str, Any]:
        layer, grids = self._layers[name]
        reads, writes = layer.widths(widths)
        weights = None if decomposed is None else self._weights(layer, decomposed)
        grid = grids[None if decomposed is None else decomposed.method]
        return {memory_format: grid.at(memory_format, reads, writes, weights) for memory_format in MEMORY_FORMATS}

    def _weights(self, layer: LayerCost, decomposed: DecomposedLayer) -> float:
        """Return the weights of a layer at full width: the number by which ranks are ordered and interpolated."""
        full = layer.widths(self._plan.widths)
        cost = DECOMPOSITIONS[decomposed.method].cost
        return float(cost(*full, layer.kernel, (1, 1), (1, 1), decomposed.rank)[1])

    def _grids(self, layer: LayerCost, module: nn.Module) -> dict[str | None, Grid]:
        """Return the times of a layer by method; None: dense."""
        full = layer.widths(self._plan.widths)
        long = int(layer.at(*full, None).macs) > _LONG
        fractions = _COARSE_FRACTIONS if long else _FRACTIONS
        axes = [sorted({max(1, round(width * f)) for f in fractions}) for width in full]
        if not layer.layer.reads:
            axes[0] = [full[0]]
        if layer.layer.writes is None:
            axes[1] = [full[1]]

        def times(option: DecomposedLayer | None) -> list[list[Times]]:
            return [[self._cell(layer, module, (i, o), option) for o in axes[1]] for i in axes[0]]

        grids: dict[str | None, Grid] = {None: Grid(axes[0], axes[1], {None: times(None)})}
        asked = self._options.get(layer.layer.name, ())
        for method in dict.fromkeys(option.method for option in asked):
            options = [option for option in asked if option.method == method]
            timed = self._timed_options(layer, module, options, _COARSE_STEPS if long else _STEPS)
            cells: dict[float | None, list[list[Times]]] = {self._weights(layer, one): times(one) for one in timed}
            grids[method] = Grid(axes[0], axes[1], cells)
        return grids

    def _timed_options(
        self, layer: LayerCost, module: Any, asked: Sequence[DecomposedLayer], steps: Sequence[int]
    ) -> list[DecomposedLayer]:
        """Return the ranks at which a layer is timed: some that it may have, near to those that will be asked for."""
        method = asked[0].method
        choices = DECOMPOSITIONS[method].choices(module)
        grid = [DecomposedLayer(method, choices[i]) for i in sorted({min(n, len(choices) - 1) for n in steps})]
        weights = [self._weights(layer, option) for option in asked]
        near = [o for o in grid if min(weights) / 2 < self._weights(layer, o) < 2 * max(weights)]
        return near or grid[-1:]

    def _cell(
        self, layer: LayerCost, module: nn.Module, widths: tuple[int, int], option: DecomposedLayer | None
    ) -> Times:
        """Return the times of a layer, all its calls together."""
        timed = _resized(module, layer.widths(self._plan.widths), widths, option)
        total = dict.fromkeys(MEMORY_FORMATS, 0.0)
        for call in layer.calls:
            shape: tuple[int, ...] = (self._batch, widths[0], *call.inputs)
            if isinstance(module, nn.Linear):
                shape = (self._batch * call.inputs[0], widths[0] * layer.layer.spatial)
            key = f"{self._device} {shape} {timed!r}"
            if key not in self._table.times:
                self._table.times[key] = _time_layer(timed, shape, self._device)
            total = {name: total[name] + self._table.times[key][name] for name in MEMORY_FORMATS}
        return total

    def _time_whole(self, dense: Network) -> Times:
        architecture = dense.architecture
        key = f"{self._device} whole {architecture.name} {self._batch} x {architecture.image_size}"
        if architecture.task.name == Detection.name:
            key += f", {PROPOSALS} proposals"
        if key not in self._table.times:
            images = architecture.task.example(architecture.image_size, self._batch)
            on_device = tree_map(lambda image: image.to(self._device), images)
            net = copied(dense.module).to(self._device)
            if architecture.task.name == Detection.name:
                fix_work(net)
            fast = deploy(net, on_device, repeats=_REPEATS)
            done = deployment_of(fast)
            assert done is not None
            self._table.times[key] = {name: done.milliseconds[name] for name in MEMORY_FORMATS}
        return self._table.times[key]


def _uniform(dense: Network, method: str, ranks: Sequence[Rank] | None) -> dict[str, list[DecomposedLayer]]:
    """Return the same ranks for all layers that a decomposition is meant for; None: all that it offers."""
    options = {}
    for name in decomposable_layers(dense, method)[0]:
        layer: Any = dense.module.get_submodule(name)
        block = DECOMPOSITIONS[method]
        asked = block.choices(layer) if ranks is None else [block.rank_for(layer, rank) for rank in ranks]
        options[name] = [DecomposedLayer(method, rank) for rank in asked]
    return options


def _resized(
    module: nn.Module, full: tuple[int, int], widths: tuple[int, int], option: DecomposedLayer | None
) -> nn.Module:
    """Return a layer like ``module``, with a bias, as it is after folding, of other widths; no memory is taken.

    Args:
        module: dense.
        full: its numbers of input and output channels.
        widths: those that it is narrowed to, after it is decomposed.
        option: method and rank; None leaves it dense.
    """
    resized: nn.Module
    positions = 1
    if isinstance(module, nn.Linear):
        positions = module.in_features // full[0]
        resized = nn.Linear(module.in_features, full[1], device="meta")
    else:
        assert isinstance(module, nn.Conv2d)
        geometry: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        resized = nn.Conv2d(*full, module.kernel_size, **geometry, device="meta")  # type: ignore[arg-type]
    if option is not None:
        resized = DECOMPOSITIONS[option.method].like(resized, option.rank)
    narrow(resized, torch.arange(widths[0] * positions), torch.arange(widths[1]))
    return resized


def _time_layer(module: nn.Module, shape: tuple[int, ...], device: str) -> Times:
    """Return the milliseconds of the fastest implementation in each memory format."""
    layer = module.to_empty(device=device)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.05)
    variants = [expand(layer, name) for name in implementations_of(layer)] or [layer]
    times = {}
    for name, memory_format in MEMORY_FORMATS.items():
        images = torch.randn(shape, device=device)
        if images.ndim == 4:
            images = images.contiguous(memory_format=memory_format)
            variants = [variant.to(memory_format=memory_format) for variant in variants]
        runs = {str(i): partial(_run, variant, images) for i, variant in enumerate(variants)}
        repeats = 1 if images.numel() > _LARGE else _REPEATS
        times[name] = 1e3 * min(time_contenders(runs, repeats).values())
    return times


@torch.inference_mode()
def _run(module: nn.Module, images: torch.Tensor) -> None:
    module(images)
