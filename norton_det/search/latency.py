"""Latency of an architecture's networks at any widths and ranks, from a table of measured times of single layers.

Each layer is timed, deployed, on a grid of widths and ranks, and what lies between is interpolated; what is no layer of
the channel plan (pooling, additions, heads) takes as long as in the dense network. Times are kept in the user's cache
folder, by machine, so that the table is built once.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from norton_det.channels.narrow import narrow
from norton_det.cost.cost_model import CostModel, LayerCost
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.deployment.record import MEMORY_FORMATS, deployment_of
from norton_det.errors import UsageError
from norton_det.runtime.timing import time_contenders
from norton_det.search.latency_table import Grid, LatencyTable, Times
from norton_det.spec import DecomposedLayer, Rank
from norton_det.structure.network import Network

_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_STEPS = (0, 1, 3, 7)  # which of a layer's possible ranks are timed
_REPEATS = 3


class LatencyModel:
    """Latencies of an architecture's deployed networks on this machine, at the image size for which it is counted.

    Args:
        costs: the cost model of the architecture.
        dense: the architecture's dense network, on the CPU.
        decomposition: registered name of the method that will be asked for.
        ranks: ranks that will be asked for, of all layers; None: all that the decomposition offers.
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
        batch: int = 1,
        device: str = "cpu",
        table: LatencyTable | None = None,
    ) -> None:
        self._table, self._batch, self._device = table or LatencyTable(), batch, device
        self._plan, self._method, self._ranks = costs.plan, decomposition, ranks
        layers = [layer for layer in costs.layers if layer.planned and layer.norm_params is None]
        self._grids: dict[str, tuple[LayerCost, Grid]] = {}
        for layer in tqdm(layers, desc="latency table", unit="layer", disable=None, leave=False):
            name = layer.layer.name
            self._grids[name] = layer, self._grid(layer, dense.module.get_submodule(name))
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
            UsageError: a layer beside the channel plan, or of another decomposition than the model was made for.
        """
        for name, layer in decompositions.items():
            timed = name in self._grids and self._grids[name][1].has_ranks
            if not timed or layer.method != self._method:
                raise UsageError(
                    f"no latency of layer {name!r} decomposed by {layer.method!r}; expected a layer of the channel "
                    f"plan, by {self._method!r}"
                )
        sums = self._sum(decompositions, widths)
        best: NDArray[np.float64] = np.min([sums[name] + self._rest[name] for name in MEMORY_FORMATS], 0)
        return best

    def _sum(self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> dict[str, Any]:
        total: dict[str, Any] = dict.fromkeys(MEMORY_FORMATS, 0.0)
        all_widths = {**self._plan.widths, **widths}
        for name, (layer, grid) in self._grids.items():
            reads, writes = layer.widths(all_widths)
            weights = self._weights(layer, decompositions[name].rank) if name in decompositions else None
            for memory_format in MEMORY_FORMATS:
                total[memory_format] = total[memory_format] + grid.at(memory_format, reads, writes, weights)
        return total

    def _weights(self, layer: LayerCost, rank: Rank) -> float:
        """Return the weights of a layer at full width: the number by which ranks are ordered and interpolated."""
        full = layer.widths(self._plan.widths)
        return float(DECOMPOSITIONS[self._method].cost(*full, layer.kernel, (1, 1), (1, 1), rank)[1])

    def _grid(self, layer: LayerCost, module: nn.Module) -> Grid:
        full = layer.widths(self._plan.widths)
        axes = [sorted({max(1, round(width * f)) for f in _FRACTIONS}) for width in full]
        if not layer.layer.reads:
            axes[0] = [full[0]]
        if layer.layer.writes is None:
            axes[1] = [full[1]]
        cells: dict[float | None, list[list[Times]]] = {}
        for rank in (None, *self._measured_ranks(layer, module)):
            weights = None if rank is None else self._weights(layer, rank)
            cells[weights] = [[self._cell(layer, module, (i, o), rank) for o in axes[1]] for i in axes[0]]
        return Grid(axes[0], axes[1], cells)

    def _measured_ranks(self, layer: LayerCost, module: nn.Module) -> list[Rank]:
        """Return the ranks at which a layer is timed: some that it may have, near to those that will be asked for."""
        block = DECOMPOSITIONS[self._method]
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or block.suits(module):
            return []
        choices = block.choices(module)
        grid = [choices[i] for i in sorted({min(n, len(choices) - 1) for n in _STEPS})]
        if self._ranks is None:
            return grid
        asked = [self._weights(layer, block.rank_for(module, rank)) for rank in self._ranks]
        return [r for r in grid if min(asked) / 2 < self._weights(layer, r) < 2 * max(asked)] or grid[-1:]

    def _cell(self, layer: LayerCost, module: nn.Module, widths: tuple[int, int], rank: Rank | None) -> Times:
        size = layer.inputs if isinstance(module, nn.Conv2d) else ()
        shape = (self._batch, widths[0], *size)
        timed = _resized(module, layer.widths(self._plan.widths), widths, self._method, rank)
        key = f"{self._device} {shape} {timed!r}"
        if key not in self._table.times:
            self._table.times[key] = _time_layer(timed, shape, self._device)
        return self._table.times[key]

    def _time_whole(self, dense: Network) -> Times:
        architecture = dense.architecture
        key = f"{self._device} whole {architecture.name} {self._batch} x {architecture.image_size}"
        if key not in self._table.times:
            images = architecture.task.example(architecture.image_size, self._batch)
            on_device = tree_map(lambda image: image.to(self._device), images)
            fast = deploy(dense.module.to(self._device), on_device, repeats=_REPEATS)
            done = deployment_of(fast)
            assert done is not None
            self._table.times[key] = {name: done.milliseconds[name] for name in MEMORY_FORMATS}
        return self._table.times[key]


def _resized(
    module: nn.Module, full: tuple[int, int], widths: tuple[int, int], method: str, rank: Rank | None
) -> nn.Module:
    """Return a layer like ``module``, with a bias, as it is after folding, of other widths; no memory is taken.

    Args:
        module: dense.
        full: its numbers of input and output channels.
        widths: those that it is narrowed to, after it is decomposed.
        method: registered name of the decomposition.
        rank: None leaves it dense.
    """
    resized: nn.Module
    if isinstance(module, nn.Linear):
        resized = nn.Linear(*full, device="meta")
    else:
        assert isinstance(module, nn.Conv2d)
        geometry: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        resized = nn.Conv2d(*full, module.kernel_size, **geometry, device="meta")  # type: ignore[arg-type]
    if rank is not None:
        resized = DECOMPOSITIONS[method].like(resized, rank)
    narrow(resized, *(torch.arange(width) for width in widths))
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
        times[name] = 1e3 * min(time_contenders(runs, _REPEATS).values())
    return times


@torch.inference_mode()
def _run(module: nn.Module, images: torch.Tensor) -> None:
    module(images)
