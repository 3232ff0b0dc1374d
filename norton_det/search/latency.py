"""Latency of an architecture's networks at any widths and ranks, from a table of measured times of single layers.

Each layer is timed, deployed, on a grid of widths and ranks, and what lies between is interpolated; what is no layer of
the channel plan (pooling, additions, heads) takes as long as in the dense network. Times are kept in the user's cache
folder, by machine, so that the table is built once.
"""

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from norton_det.cost.cost_model import CostModel, LayerCost
from norton_det.decompositions import CPConv2d
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.deployment.record import MEMORY_FORMATS, deployment_of
from norton_det.files import write_json
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn import DETECTOR_SIZE
from norton_det.runtime.timing import describe_machine, time_contenders
from norton_det.spec import Spec
from norton_det.structure.build import build

_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_RANKS = (1, 2, 4, 8)
_REPEATS = 3
_IMPLEMENTATIONS = 2  # a higher number for new implementations of layers: times from before them no longer hold
Times = dict[str, float]
"""Milliseconds in each memory format."""


class LatencyTable:
    """Times that were measured on this machine: JSON in the user's cache folder.

    Args:
        folder: where the file is; None: ``$XDG_CACHE_HOME/norton_det`` or ``~/.cache/norton_det``.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.machine = describe_machine()
        name = f"latency-{sha256(f'{self.machine}, implementations {_IMPLEMENTATIONS}'.encode()).hexdigest()[:12]}.json"
        self.path = Path(folder or cache / "norton_det") / name
        self.times: dict[str, Times] = {}
        if self.path.is_file():
            try:
                self.times = json.loads(self.path.read_text())["times"]
            except (ValueError, KeyError, TypeError):
                self.times = {}  # a damaged cache is measured anew

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"machine": self.machine, "times": self.times})


class LatencyModel:
    """Latencies of an architecture's deployed networks on this machine, at the image size for which it is counted.

    Args:
        costs: the cost model of the architecture.
        arch: its registered name.
        ranks: ranks that will be asked for.
        batch: images at once; detectors: 1.
        device: "cpu" or "cuda".
        table: what has been measured so far; what is missing is measured and written.
    """

    def __init__(
        self,
        costs: CostModel,
        arch: str,
        *,
        ranks: tuple[int, ...] = _RANKS,
        batch: int = 1,
        device: str = "cpu",
        table: LatencyTable | None = None,
    ) -> None:
        self._table, self._batch, self._device = table or LatencyTable(), batch, device
        self._plan, net = costs.plan, build(Spec(arch, ARCHITECTURES[arch].num_classes))
        self._ranks = tuple(rank for rank in _RANKS if min(ranks) / 2 < rank < 2 * max(ranks)) or _RANKS[-1:]
        self._grids = []
        layers = [layer for layer in costs.layers if layer.norm_params is None]
        bar = tqdm(layers, desc="latency table", unit="layer", disable=None, leave=False)
        for layer in bar:
            self._grids.append((layer, self._grid(layer, net.get_submodule(layer.layer.name))))
            self._table.save()
        self._rest = dict.fromkeys(MEMORY_FORMATS, 0.0)
        layered = self._sum({}, {})
        whole = self._time_whole(arch, net)
        self._table.save()
        self._rest = {name: max(0.0, whole[name] - float(layered[name])) for name in MEMORY_FORMATS}
        self.dense = float(self.at({}, {}))

    def at(self, ranks: Mapping[str, Any], widths: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return milliseconds; arguments as for :meth:`norton_det.cost.cost_model.CostModel.at`, one rank a layer."""
        sums = self._sum(ranks, widths)
        best: NDArray[np.float64] = np.min([sums[name] + self._rest[name] for name in MEMORY_FORMATS], 0)
        return best

    def _sum(self, ranks: Mapping[str, Any], widths: Mapping[str, Any]) -> dict[str, Any]:
        total: dict[str, Any] = dict.fromkeys(MEMORY_FORMATS, 0.0)
        all_widths = {**self._plan.widths, **widths}
        for layer, grid in self._grids:
            reads, writes = layer.widths(all_widths)
            rank = ranks.get(layer.layer.name)
            for name in MEMORY_FORMATS:
                total[name] = total[name] + grid.at(name, reads, writes, rank)
        return total

    def _grid(self, layer: LayerCost, module: nn.Module) -> "_Grid":
        full = layer.widths(self._plan.widths)
        axes = [sorted({max(1, round(width * f)) for f in _FRACTIONS}) for width in full]
        if not layer.layer.reads:
            axes[0] = [full[0]]
        if layer.layer.writes is None:
            axes[1] = [full[1]]
        spatial = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        ranks: tuple[int | None, ...] = (None, *self._ranks) if spatial else (None,)
        cells = {rank: [[self._cell(layer, module, i, o, rank) for o in axes[1]] for i in axes[0]] for rank in ranks}
        return _Grid(axes[0], axes[1], cells)

    def _cell(self, layer: LayerCost, module: nn.Module, inputs: int, outputs: int, rank: int | None) -> Times:
        size = layer.inputs if isinstance(module, nn.Conv2d) else ()
        shape = (self._batch, inputs, *size)
        made = _resized(module, inputs, outputs)
        key = f"{self._device} {shape} {made!r} rank {rank}"
        if key not in self._table.times:
            self._table.times[key] = _time_layer(made, rank, shape, self._device)
        return self._table.times[key]

    def _time_whole(self, arch: str, net: nn.Module) -> Times:
        detector, size = ARCHITECTURES[arch].image_size == DETECTOR_SIZE, ARCHITECTURES[arch].image_size
        key = f"{self._device} whole {arch} {self._batch} x {size}"
        if key not in self._table.times:
            images = torch.rand(self._batch, 3, size, size, device=self._device)
            fast = deploy(net.to(self._device), list(images) if detector else images, repeats=_REPEATS)
            done = deployment_of(fast)
            assert done is not None
            self._table.times[key] = {name: done.milliseconds[name] for name in MEMORY_FORMATS}
        return self._table.times[key]


class _Grid:
    """Times of a layer at some widths and ranks."""

    def __init__(self, inputs: list[int], outputs: list[int], cells: Mapping[int | None, list[list[Times]]]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.values = {
            name: {rank: np.array([[cell[name] for cell in row] for row in rows]) for rank, rows in cells.items()}
            for name in MEMORY_FORMATS
        }

    def at(self, name: str, inputs: Any, outputs: Any, rank: int | None) -> Any:
        """Interpolate between the nearest widths and ranks."""
        values = self.values[name]
        if rank is None or rank in values:
            return _bilinear(values[rank], self.inputs, self.outputs, inputs, outputs)
        known = sorted(r for r in values if r is not None)
        low = max((r for r in known if r < rank), default=known[0])
        high = min((r for r in known if r > rank), default=known[-1])
        share = (rank - low) / (high - low) if high > low else 0.0
        both = (1 - share) * values[low] + share * values[high]
        return _bilinear(both, self.inputs, self.outputs, inputs, outputs)


def _bilinear(values: NDArray[np.float64], xs: list[int], ys: list[int], x: Any, y: Any) -> Any:
    (i, s), (j, t) = _place(xs, x), _place(ys, y)
    k, m = np.minimum(i + 1, len(xs) - 1), np.minimum(j + 1, len(ys) - 1)
    low = (1 - t) * values[i, j] + t * values[i, m]
    high = (1 - t) * values[k, j] + t * values[k, m]
    return (1 - s) * low + s * high


def _place(axis: list[int], value: Any) -> tuple[Any, Any]:
    """Return the grid point below, and the share of the way to the next; below the first point that is the first."""
    points = np.asarray(axis)
    i = np.clip(np.searchsorted(points, value, side="right") - 1, 0, max(0, len(points) - 2))
    step = points[np.minimum(i + 1, len(points) - 1)] - points[i]
    return i, np.clip((np.asarray(value) - points[i]) / np.maximum(step, 1), 0, 1)


def _resized(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """Return a layer like ``module``, with a bias, as it is after folding, of other widths; no memory is taken."""
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, device="meta")
    assert isinstance(module, nn.Conv2d)
    geometry: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
    return nn.Conv2d(inputs, outputs, module.kernel_size, **geometry, device="meta")  # type: ignore[arg-type]


def _time_layer(module: nn.Module, rank: int | None, shape: tuple[int, ...], device: str) -> Times:
    """Return the milliseconds of the fastest implementation in each memory format."""
    times = {}
    for name, memory_format in MEMORY_FORMATS.items():
        made = module.to_empty(device=device)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.05)
        layer = made
        if rank is not None:
            assert isinstance(made, nn.Conv2d)
            layer = CPConv2d.like(made, rank)
        implementations = [expand(layer, implementation) for implementation in implementations_of(layer)] or [layer]
        images = torch.randn(shape, device=device)
        if images.ndim == 4:
            images = images.contiguous(memory_format=memory_format)
            implementations = [implementation.to(memory_format=memory_format) for implementation in implementations]

        def run(implementation: nn.Module, images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                implementation(images)

        runs = {
            str(i): (lambda implementation=implementation: run(implementation))
            for i, implementation in enumerate(implementations)
        }
        times[name] = 1e3 * min(time_contenders(runs, _REPEATS).values())
    return times
