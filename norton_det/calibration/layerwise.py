"""Refit a compressed network, layer by layer, to the outputs of the dense one on a calibration set without labels.

Both networks process the images at the same time. Before a layer of the compressed network is computed, it is fitted by
least squares: from the inputs that it gets from the layers before it, which are refitted already, to the outputs of the
dense layer (the asymmetric form of Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for
Classification and Detection", arXiv:1505.06798). One mechanism serves decomposed layers, layers that read a narrowed
group, and both.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.lockstep import LayerCall, observed, visit
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import ChannelMap, columns_of
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.decompositions import Decomposition, in_implementation
from norton_det.decompositions.conv import check_finite
from norton_det.errors import DataError, UsageError
from norton_det.linalg.least_squares import Regression, Solve
from norton_det.models.tasks import Images, as_inputs
from norton_det.runtime.modes import copied, evaluating, undone_on_failure

_RIDGE_SWEEPS = 2  # of the fits by which a ridge is chosen
_NEGLIGIBLE = 1e-2  # of a norm's largest gain: a channel that counts less does not make up for anything


def calibrate(
    net: nn.Module,
    reference: nn.Module,
    plan: ChannelPlan,
    kept: Mapping[str, Tensor],
    images: Images,
    *,
    seed: int = 0,
    outside: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Refit the layers of ``net`` in place to the outputs of ``reference`` on a calibration set.

    The networks may have any floating dtype; sums over samples are in double precision. Where it fails, ``net`` is as
    before.

    All images pass at once and every layer is computed once; memory is that of two forward passes of all of them.

    Args:
        net: the compressed network.
        reference: the network that it was made from; it stays as it is.
        plan: channel plan of ``reference``.
        kept: group -> channels of ``reference`` that ``net`` has, int64, ascending; those of other groups are all kept.
        images: without labels, as the network takes them.
        seed: of the spatial positions that are drawn and of the decompositions' starts.
        outside: further layers to refit, which the plan does not name; their inputs and outputs are all kept.

    Returns:
        For each layer ``plain`` and ``fitted``: its output's squared error as a fraction of the output's variance, with
        the weights as they were (and the best bias for them) and as they are now.

    Raises:
        UsageError: there is no image; or a layer does not run exactly once in one pass, so that there is no one input
            to fit it from.
        DataError: values in a network that are not finite, from images or weights; the message names the layer.
    """
    if not len(images):
        raise UsageError("calibration has no image; expected at least 1")
    fit = _Fit(net, copy.deepcopy(reference).eval(), _with(plan, outside), kept, seed)

    def run(model: nn.Module) -> None:
        model(as_inputs(images, model))

    _check_run_once(fit.reference, fit.layers, images[:1])
    with (
        undone_on_failure(net),
        evaluating(net),
        in_implementation(net, "dense"),
        in_implementation(fit.reference, "dense"),
        observed(fit.reference, fit.layers, run) as dense,
        tqdm(total=len(fit.layers), desc="calibrate", unit="layer", disable=None, leave=False) as bar,
    ):

        def before(name: str, x: Tensor) -> None:
            try:
                fit.layer(name, x, next(dense))
            except (DataError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                reason = str(error).splitlines()[0]
                raise DataError(f"layer {name!r} cannot be calibrated: {reason}") from error
            bar.update()

        visit(net, {name: partial(before, name) for name in fit.layers}, run)
    return fit.report


@torch.no_grad()
def _check_run_once(net: nn.Module, names: Sequence[str], images: Images) -> None:
    net = copied(net).float()  # all of a detector runs here, and parts of it in no other precision on a CPU
    counts = dict.fromkeys(names, 0)

    def count(name: str, *hook_arguments: Any) -> None:
        counts[name] += 1

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(net.get_submodule(name).register_forward_hook(partial(count, name)))
        net(as_inputs(images, net))
    for name, number in counts.items():
        if number != 1:
            raise UsageError(f"layer {name!r} runs {number} times in one pass; expected once: it cannot be calibrated")


def _with(plan: ChannelPlan, outside: Sequence[str]) -> ChannelPlan:
    return replace(plan, layers=(*plan.layers, *(Layer(name) for name in outside)))


class _Channels(NamedTuple):
    """Channels of a layer of the reference that the compressed one has, int64; None: all."""

    inputs: Tensor | None
    outputs: Tensor | None


class _Fit:
    """The state of one pass: the networks, and what is carried from layer to layer."""

    def __init__(
        self, net: nn.Module, reference: nn.Module, plan: ChannelPlan, kept: Mapping[str, Tensor], seed: int
    ) -> None:
        self.net, self.reference, self.plan, self.kept, self.seed = net, reference, plan, kept, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.norms = own_norms(reference, plan)
        self.sums = {group for group in plan.widths if len(plan.writers(group)) > 1}
        self.missing: dict[str, Tensor] = {}  # by group of a residual sum: dense minus ours, of what is added before
        self.report: dict[str, dict[str, float]] = {}
        self.maps = _maps(reference, plan)
        adapted = (nn.Conv2d, nn.Linear, Decomposition)
        modules = {layer.name: reference.get_submodule(layer.name) for layer in plan.layers}
        norms = [name for name, module in modules.items() if _is_norm(module) and name not in self.norms.values()]
        self.layers = [name for name, module in modules.items() if isinstance(module, adapted) or name in norms]
        self.by_name = {layer.name: layer for layer in plan.layers}

    def layer(self, name: str, x: Tensor, dense: LayerCall) -> None:
        """Fit the layer ``name`` before it is computed from ``x``."""
        if dense.name != name:
            raise UsageError(
                f"layer {name!r} runs where the dense network runs {dense.name!r}: it cannot be calibrated"
            )
        layer = self.by_name[name]
        module: Any = self.net.get_submodule(name)
        inputs = columns_of(layer, self.plan.widths, self.kept)
        for what, tensor in (("inputs", x), ("outputs in the dense network", dense.output)):
            if not tensor.isfinite().all():
                raise DataError(f"its {what} are not finite; expected images and weights that keep them finite")
        dense_x = _select(dense.inputs, 1, inputs)
        if _is_norm(module):
            module.running_mean.add_(_mean(x) - _mean(dense_x))
            return
        outputs = self.kept.get(layer.writes or "")
        target = _select(dense.output, 1, outputs)
        norm: Any = self.net.get_submodule(self.norms[name]) if name in self.norms else None
        if norm is not None and layer.writes in self.missing:
            # What the sum lacks already, this layer makes up for: it is added next.
            target = target + self.missing[layer.writes] / _gain(norm).view(-1, 1, 1)
        self._refit(name, module, norm, x, target, _Channels(inputs, outputs))
        if (group := "".join(layer.reads)) in self.sums:
            self.missing[group] = dense_x - x
        self._begin_sums(layer, norm, x, dense)

    def _begin_sums(self, layer: Layer, norm: Any, x: Tensor, dense: LayerCall) -> None:
        """Note what sums lack that no layer has read yet: of a shortcut that maps channels, and of a first addend."""

        def both(name: str, group: str, inputs: Tensor, dense_inputs: Tensor) -> Tensor:
            ours, its = (model.get_submodule(name) for model in (self.net, self.reference))
            lacking: Tensor = _select(its(dense_inputs), 1, self.kept.get(group)) - ours(inputs)
            return lacking

        for shortcut, group in self.maps.get(layer.reads, ()):
            self.missing[group] = both(shortcut, group, x, dense.inputs)
        if norm is not None and layer.writes in self.sums and layer.writes not in self.missing:
            module: Any = self.net.get_submodule(layer.name)
            output = module.forward(x)  # not a call, which would come back to here
            self.missing[layer.writes] = both(self.norms[layer.name], layer.writes, output, dense.output)

    def _refit(self, name: str, module: Any, norm: Any, x: Tensor, target: Tensor, kept: _Channels) -> None:
        dense = _as_dense(self.reference.get_submodule(name))
        moments = Moments(dense, self.generator)
        moments.add(x, target)
        prior = _select(_select(dense.weight.detach(), 0, kept.outputs), 1, kept.inputs)
        regression = moments.regression(prior.cpu().double().flatten(1), self._solve(module))
        plain = regression.error(_weights(module))
        if isinstance(module, Decomposition):
            module.refit(regression, seed=self.seed)
        else:
            module.weight.copy_(regression.solution().view_as(module.weight))
        weights = _weights(module)
        check_finite(weights, f"weights in {next(module.parameters()).dtype}")
        mean_x, mean_target = moments.means()
        shift = mean_target - weights @ mean_x
        if module.bias is not None:
            module.bias.copy_(shift)
        elif norm is not None:
            norm.running_mean.sub_(shift.to(norm.running_mean))
        variance = regression.power.sum().clamp(min=1e-300)
        errors = {"plain": plain, "fitted": regression.error(weights)}
        self.report[name] = {key: (error.sum() / variance).item() for key, error in errors.items()}

    def _solve(self, module: nn.Module) -> Solve:
        """Return the fit by which the ridge of a layer is chosen: what the layer can become, in fewer steps."""
        if not isinstance(module, Decomposition):
            return Regression.solution

        def fitted(regression: Regression) -> Tensor:
            block = copy.deepcopy(module).double()
            block.refit(regression, seed=self.seed, sweeps=_RIDGE_SWEEPS, second_start=False)
            return _weights(block)

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


def _select(x: Tensor, dim: int, channels: Tensor | None) -> Tensor:
    return x if channels is None else x.index_select(dim, channels.to(x.device))


def _as_dense(module: nn.Module) -> Any:
    return module.to_dense() if isinstance(module, Decomposition) else module


def _weights(module: nn.Module) -> Tensor:
    weights: Tensor = _as_dense(module).weight.detach().cpu().double().flatten(1)
    return weights
