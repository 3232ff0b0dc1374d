"""The fit of one layer after another while two networks run in step, and what is carried from layer to layer."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.calibration.linear_map import (
    LAYERS,
    as_layer,
    by_channel,
    check_inputs,
    matrix_of,
    not_a_map,
    write_matrix,
)
from norton_det.calibration.lockstep import LayerCall
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import ChannelMap, columns_of, narrow
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.decompositions import Decomposition
from norton_det.decompositions.conv import check_finite
from norton_det.errors import DataError, UsageError
from norton_det.linalg.least_squares import LeastSquares, Solve, solution_of

_RIDGE_SWEEPS = 2  # of the fits by which a ridge is chosen
_NEGLIGIBLE = 1e-2  # of a norm's largest gain: a channel that counts less does not make up for anything


class Fit:
    """The state of a calibration: the networks, the layer that is fitted, and what is carried from layer to layer."""

    def __init__(
        self,
        net: nn.Module,
        reference: nn.Module,
        plan: ChannelPlan,
        kept: Mapping[str, Tensor],
        seed: int,
        images: int,
    ) -> None:
        self.net, self.reference, self.plan, self.kept, self.seed = net, reference, plan, kept, seed
        self.number = images
        self.norms = own_norms(reference, plan)
        self.sums = {group for group in plan.widths if len(plan.writers(group)) > 1} - plan.separate
        self.report: dict[str, dict[str, float]] = {}
        self.maps = _maps(reference, plan)
        modules = {layer.name: reference.get_submodule(layer.name) for layer in plan.layers}
        norms = [name for name, module in modules.items() if _is_norm(module) and name not in self.norms.values()]
        self.layers = [name for name, module in modules.items() if _is_fitted(module) or name in norms]
        self.by_name = {layer.name: layer for layer in plan.layers}

    def begin(self, name: str, calls: int) -> None:
        """Begin a pass in which a layer is fitted that runs so many times."""
        self.name, self.calls = name, calls
        if _is_norm(self.net.get_submodule(name)):
            self.shift: Any = 0.0
        else:
            self.moments = Moments(self._narrowed(self.by_name[name]), self.seed, calls)

    def begin_images(self, images: range) -> None:
        """Go on with some of the images."""
        self.images, self.seen = images, 0
        self.missing: dict[str, Tensor] = {}  # by group of a residual sum: dense minus ours, of what is added before

    @property
    def has_seen_all(self) -> bool:
        """Whether the layer that is fitted has run as often on these images as it does."""
        return self.seen == self.calls

    def before(self, name: str, x: Tensor, dense: LayerCall | None) -> None:
        """Take in a call of the layer ``name`` before it is computed from ``x``."""
        if dense is None or dense.name != name:
            other = "nothing" if dense is None else repr(dense.name)
            raise UsageError(f"layer {name!r} runs where the dense network runs {other}: it cannot be calibrated")
        layer = self.by_name[name]
        self.x, self.dense = x, dense
        self.dense_x = _select(dense.inputs, 1, columns_of(layer, self.plan.widths, self.kept))
        if name == self.name:
            self._take_in(layer, x, dense)
            self.seen += 1
        if "".join(layer.reads) in self.sums and not _is_norm(self.net.get_submodule(name)):
            self._note("".join(layer.reads), self.dense_x - x)

    def _take_in(self, layer: Layer, x: Tensor, dense: LayerCall) -> None:
        """Add a call to what is known of the layer that is fitted."""
        for what, tensor in (("inputs", x), ("outputs in the dense network", dense.output)):
            if not tensor.isfinite().all():
                raise DataError(f"its {what} are not finite; expected images and weights that keep them finite")
        check_inputs(layer.name, self.reference.get_submodule(layer.name), x)
        if _is_norm(self.net.get_submodule(layer.name)):
            share = len(self.images) / self.number / self.calls
            self.shift = self.shift + share * (_mean(x) - _mean(self.dense_x))
        else:
            target = self._and_missing(layer, _select(dense.output, 1, self.kept.get(layer.writes or "")))
            self.moments.add(x, target, self.images, self.seen)

    def end(self) -> None:
        """Fit the layer, once it was seen on all images."""
        module: Any = self.net.get_submodule(self.name)
        if _is_norm(module):
            module.running_mean.add_(self.shift)
        else:
            self._refit(module)

    def _and_missing(self, layer: Layer, target: Tensor) -> Tensor:
        """Return the target of a layer with what the sum lacks already: it makes up for that, for it is added next."""
        if layer.writes not in self.missing:
            return target
        lacking, norm = _resized(self.missing[layer.writes], target), self._norm_of(layer)
        return target + (lacking if norm is None else lacking / _gain(norm).view(-1, 1, 1))

    def after(self, name: str, output: Tensor) -> None:
        """Note what sums lack that no layer has read yet: of a shortcut that maps channels, and of a first addend."""
        layer = self.by_name[name]
        if self.has_seen_all or _is_norm(self.net.get_submodule(name)):
            return
        for shortcut, group in self.maps.get(layer.reads, ()):
            self._note(group, self._lacking(shortcut, group, self.x, self.dense.inputs))
        if layer.writes in self.sums and layer.writes not in self.missing:
            if name in self.norms:
                lacking = self._lacking(self.norms[name], layer.writes, output, self.dense.output)
            else:
                lacking = _select(self.dense.output, 1, self.kept.get(layer.writes)) - output
            self._note(layer.writes, lacking)

    def _lacking(self, name: str, group: str, inputs: Tensor, dense_inputs: Tensor) -> Tensor:
        ours, its = (model.get_submodule(name) for model in (self.net, self.reference))
        return _select(_computed(its, dense_inputs), 1, self.kept.get(group)) - _computed(ours, inputs)

    def _note(self, group: str, lacking: Tensor) -> None:
        """Note what a sum lacks; what is not a number is of outputs that nothing reads any more."""
        if lacking.isnan().any():
            self.missing.pop(group, None)
        else:
            self.missing[group] = lacking

    def _norm_of(self, layer: Layer) -> Any:
        return self.net.get_submodule(self.norms[layer.name]) if layer.name in self.norms else None

    def _narrowed(self, layer: Layer) -> nn.Module:
        """Return the dense layer with the channels that are kept."""
        module: nn.Module = copy.deepcopy(as_layer(self.reference.get_submodule(layer.name)))
        narrow(module, columns_of(layer, self.plan.widths, self.kept), self.kept.get(layer.writes or ""))
        return module

    def _refit(self, module: Any) -> None:
        moments, norm = self.moments, self._norm_of(self.by_name[self.name])
        regression = moments.regression(matrix_of(moments.layer), self._solve(module))
        plain = regression.error(matrix_of(module))
        if isinstance(module, Decomposition):
            module.refit(regression, seed=self.seed)
        else:
            write_matrix(module, regression.solution())
        weights = matrix_of(module)
        check_finite(weights, f"weights in {next(module.parameters()).dtype}")
        mean_x, mean_target = moments.means()
        shift = mean_target - weights @ mean_x
        if module.bias is not None:
            module.bias.copy_(by_channel(module, shift))
        elif norm is not None:
            norm.running_mean.sub_(by_channel(module, shift).to(norm.running_mean))
        variance = regression.power.sum().clamp(min=1e-300)
        errors = {"plain": plain, "fitted": regression.error(weights)}
        self.report[self.name] = {key: (error.sum() / variance).item() for key, error in errors.items()}

    def _solve(self, module: nn.Module) -> Solve:
        """Return the fit by which the ridge of a layer is chosen: what the layer can become, in fewer steps."""
        if not isinstance(module, Decomposition):
            return solution_of

        def fitted(regression: LeastSquares) -> Tensor:
            block = copy.deepcopy(module).double()
            block.refit(regression, seed=self.seed, sweeps=_RIDGE_SWEEPS, second_start=False)
            return matrix_of(block)

        return fitted


def own_norms(net: nn.Module, plan: ChannelPlan) -> dict[str, str]:
    """Return, for each layer whose output goes to one batch norm and nowhere else, the name of that norm."""
    joined = {group for layer in plan.layers if len(layer.reads) > 1 for group in layer.reads}
    norms = {}
    for layer, following in zip(plan.layers, plan.layers[1:], strict=False):
        alone = following.reads == (layer.writes,) and layer.writes not in joined
        if alone and _is_norm(net.get_submodule(following.name)):
            norms[layer.name] = following.name
    return norms


def _maps(net: nn.Module, plan: ChannelPlan) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Return, for the groups that they read, the names of the shortcuts without weights and of what they write."""
    maps: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for layer in plan.layers:
        if layer.writes is not None and isinstance(net.get_submodule(layer.name), ChannelMap):
            maps.setdefault(layer.reads, []).append((layer.name, layer.writes))
    return maps


def _computed(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a module makes of an input, also while it returns what it returned before."""
    output: Tensor = type(module).forward(module, x)
    return output


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "running_mean")


def _gain(norm: Any) -> Tensor:
    """Return by how much each channel of a batch norm is multiplied; infinite where that is negligible."""
    weight, variance = (
        part.to(torch.promote_types(part.dtype, torch.float32)) for part in (norm.weight, norm.running_var)
    )
    gain: Tensor = weight / (variance + norm.eps).sqrt()
    return gain.masked_fill(gain.abs() <= _NEGLIGIBLE * gain.abs().max(), float("inf"))


def _mean(x: Tensor) -> Tensor:
    return x.movedim(1, 0).flatten(1).mean(1, dtype=torch.float64)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Return maps of a smaller level as they are added to those of a larger one: a pyramid adds the nearest."""
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, like.shape[2:], mode="nearest")


def _is_fitted(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) and not_a_map(module) is None


def _select(x: Tensor, dim: int, channels: Tensor | None) -> Tensor:
    return x if channels is None else x.index_select(dim, channels.to(x.device))
