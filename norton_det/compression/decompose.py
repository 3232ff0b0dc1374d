"""The first step: replace convolutions and linear layers by decomposed ones."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from tqdm import tqdm

from norton_det.calibration.calibrate import calibrated, check_calibratable
from norton_det.channels.plan import Layer
from norton_det.compression.network import network_to_compress
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.conv import DenseLayer
from norton_det.errors import DataError, UsageError
from norton_det.models.tasks import Images
from norton_det.spec import DecomposedLayer, Rank, Spec
from norton_det.structure.build import layer_of
from norton_det.structure.network import Network
from norton_det.structure.settings import Methods, Ranks, check_methods, chosen_layers, rank_for, why_dense

logger = logging.getLogger(__name__)


def decompose(
    model: nn.Module,
    arch: str | Spec,
    rank: Ranks,
    *,
    method: Methods = "cp",
    solver: str | None = None,
    calibration: Images | None = None,
    scope: str | None = None,
    round_to: int = 1,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Replace convolutions and linear layers by decomposed ones.

    With one number for all, the layers of the architecture's channel plan that the method is meant for are decomposed,
    but for those it keeps dense: with "cp" and "tucker2" every k x k convolution; with "svd" the linear layers and 1x1
    convolutions, but for those that predict. The errors, and what was left out and why, are in the spec's provenance.
    Layers that are decomposed already by another method stay as they are, so that several methods can be used in one
    network; the log says so. Their hooks, training mode and what is frozen are kept.

    Args:
        model: the network, which stays as it is.
        arch: registered name of its architecture, or its spec.
        rank: one for all, or of each layer, as in :func:`compress`.
        method: registered name of the decomposition, or of each layer that ``rank`` names.
        solver: which of the decomposition's solvers fits the filters: for CP "als" or "tensorly", as in the
            publication; None takes the default one.
        calibration: images for a fit that keeps the outputs, as in :func:`compress`.
        scope: the part of the network that one rank for all, or a list, is of, as in :func:`compress`.
        round_to: multiple to which ranks are rounded down, as in :func:`compress`.
        seed: of the fit's random starts.

    Returns:
        The network with decomposed layers, and its spec.

    Raises:
        UsageError: an unknown name or layer, rank below 1, too few ranks, a layer named that the method cannot
            decompose (a grouped convolution, or with "cp" and "tucker2" a linear layer) or that cannot be calibrated,
            or one that has another rank of this method already.
        DataError: weights that are not finite; the message names layer and filters.

    Example:
        >>> import norton_det as nd
        >>> net = nd.resnet56_cifar(weights=None)
        >>> small, spec = nd.decompose(net, "resnet56_cifar", {"conv1": 2})
        >>> small.conv1.rank, spec.ranks
        (2, {'conv1': 2})
        >>> methods = {"conv1": "cp", "linear": "svd"}
        >>> small, spec = nd.decompose(net, "resnet56_cifar", {"conv1": 2, "linear": 4}, method=methods)
        >>> spec.decompositions["linear"]
        DecomposedLayer(method='svd', rank=4)
    """
    before = network_to_compress(model, arch, scope, round_to)
    after = decomposed(before, rank, method=method, solver=solver, seed=seed, calibrating=calibration is not None)
    if calibration is not None:
        after = calibrated(after, before, calibration, seed=seed)
    return after.handed_out()


def decomposed(
    network: Network, rank: Ranks, *, method: Methods, solver: str | None, seed: int, calibrating: bool = False
) -> Network:
    """Return a copy of the network with decomposed layers; arguments and errors as of :func:`decompose`.

    Args:
        network: it stays as it is.
        rank: as of :func:`decompose`.
        method: as of :func:`decompose`.
        solver: as of :func:`decompose`.
        seed: as of :func:`decompose`.
        calibrating: the layers will be calibrated: those that cannot be are refused before the work begins.
    """
    check_solver(method, solver)
    layers, skipped = chosen_layers(network, rank, method)
    skipped |= _left_as_they_are(network, rank, method, layers)
    if calibrating:
        check_calibratable(network, layers)
    net = copy.deepcopy(network.module)
    report: dict[str, Any] = {}
    for name, layer in tqdm(layers.items(), desc="decompose", unit="layer", disable=None, leave=False):
        dense, block = layer_of(net, name, network.architecture), DECOMPOSITIONS[layer.method]
        try:
            fitted = block.from_layer(dense, layer.rank, seed=seed, solver=solver)
        except (UsageError, DataError) as error:
            raise type(error)(f"layer {name!r}: {error}") from None
        fit = {"method": layer.method, "solver": solver or block.default_solver, "seed": seed, "rank": layer.rank}
        report[name] = {**fit, **_fit_report(dense, fitted)}
        _keep_hooks(dense, fitted, name)
        net.set_submodule(name, fitted)
    logger.info("%d layers decomposed, %d left dense", len(layers), len(skipped))
    spec = replace(network.spec, decompositions={**network.spec.decompositions, **layers})
    return replace(network, module=net, spec=spec).with_step("decompose", _merged(network, report, skipped))


def check_solver(method: Methods, solver: str | None) -> None:
    """Check that the decompositions have this solver.

    Raises:
        UsageError: an unknown decomposition, or one without the solver.
    """
    for name in check_methods(method):
        if solver is not None:
            DECOMPOSITIONS[name].solvers.check(solver)


def _left_as_they_are(
    network: Network, rank: Ranks, method: Methods, layers: Mapping[str, DecomposedLayer]
) -> dict[str, str]:
    """Return why one rank for all, or a list, leaves out the layers of the plan that are decomposed already.

    Raises:
        UsageError: they have another rank of this method; or there is no other layer to decompose.
    """
    if isinstance(rank, Mapping) or isinstance(method, Mapping):  # of the layers that they name, which are dense
        return {}
    before = network.spec.decompositions
    done = {layer.name: layer for layer in network.plan.layers if layer.name in before}
    other = {name: before[name] for name, layer in done.items() if not _is_as_asked(network, layer, rank, method)}
    if other:
        name, layer = next(iter(other.items()))
        where = f"layer {name!r} and {len(other) - 1} others are" if len(other) > 1 else f"layer {name!r} is"
        message = f"{where} decomposed already ({layer.method}, rank {layer.rank})"
        if not layers or (not isinstance(rank, str) and any(layer.method == method for layer in other.values())):
            raise UsageError(f"{message}; expected the dense network, or ranks by the names of other layers")
        logger.warning("%s and left so", message)
    return {name: f"decomposed already ({before[name].method}, rank {before[name].rank})" for name in done}


def _is_as_asked(network: Network, layer: Layer, rank: Rank | str, method: str) -> bool:
    present = network.spec.decompositions[layer.name]
    block: Any = network.module.get_submodule(layer.name)
    dense = block.to_dense()
    if why_dense(network.architecture, layer, dense, method):  # nothing is asked of it
        return True
    if present.method != method or isinstance(rank, str):  # a list is of the dense layers
        return False
    return bool(present.rank == rank_for(dense, method, rank, network.architecture.round_to))


def _keep_hooks(dense: nn.Module, block: nn.Module, name: str) -> None:
    """Give the block that replaces a layer its hooks on inputs, outputs and gradients."""
    for kind, hooks in vars(dense).items():
        if kind == "_is_full_backward_hook":
            setattr(block, kind, hooks)
        elif kind.endswith("_hooks") and hooks and "state_dict" in kind:
            logger.warning("layer %r: its %s are lost: the tensors of its factors have other names", name, kind[1:])
        elif kind.startswith("_forward") or kind.startswith("_backward"):
            setattr(block, kind, hooks)


def _merged(network: Network, report: Mapping[str, Any], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of this step and of those before it: of each layer how it is decomposed, or why it is not."""
    before = network.spec.provenance.get("decompose", {})
    layers = {**before.get("layers", {}), **report}
    reasons = {**before.get("skipped", {}), **skipped}
    return {"layers": layers, "skipped": {name: reason for name, reason in reasons.items() if name not in layers}}


def _fit_report(dense: DenseLayer, block: Decomposition) -> dict[str, float]:
    """Return the mean over filters of ||W - W'||^2 / ||W||^2, and the largest degeneracy sum ||term||^2 / ||W||^2."""
    weight = dense.weight.detach().cpu().double().flatten(1)
    approximation = block.to_dense().weight.detach().cpu().double().flatten(1)
    energy = weight.square().sum(1)
    alive = energy > 0
    if not alive.any():
        return {"nmse": 0.0, "degeneracy": 0.0}
    error = (weight - approximation).square().sum(1)[alive] / energy[alive]
    degeneracy = block.term_energy().cpu()[alive] / energy[alive]
    return {"nmse": error.mean().item(), "degeneracy": degeneracy.max().item()}
