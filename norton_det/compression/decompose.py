"""Replace convolutions by decomposed ones."""

import copy
import logging
from dataclasses import replace
from typing import Any

from torch import nn
from tqdm import tqdm

from norton_det.calibration.calibrate import _calibrated
from norton_det.calibration.layerwise import Images
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.deployment.record import refuse_deployed
from norton_det.errors import DataError, UsageError
from norton_det.spec import Spec
from norton_det.structure.build import conv_of
from norton_det.structure.describe import check_described, describe
from norton_det.structure.settings import Ranks, chosen_layers

logger = logging.getLogger(__name__)


def decompose(
    model: nn.Module,
    arch: str | Spec,
    rank: Ranks,
    *,
    method: str = "cp",
    calibration: Images | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Replace convolutions by decomposed ones.

    With one number for all, every k x k convolution of the architecture's channel plan is decomposed, but for those it
    keeps dense. The errors, and what was left out and why, are in the spec's provenance.

    Args:
        model: the network, which stays as it is.
        arch: registered name of its architecture, or its spec.
        rank: one for all, or of each layer, as in :func:`compress`.
        method: registered name of the decomposition.
        calibration: images for a fit that keeps the outputs, as in :func:`compress`.
        seed: of the fit's random starts.

    Returns:
        The network with decomposed layers, and its spec.

    Raises:
        UsageError: an unknown name or layer, rank below 1, too few ranks, a grouped convolution named.
        DataError: weights that are not finite; the message names layer and filters.
    """
    spec = described(model, arch)
    block = DECOMPOSITIONS[method]
    if spec.ranks and spec.decomposition != method:
        raise UsageError(
            f"layers are decomposed by {spec.decomposition!r} already; expected method={spec.decomposition!r}"
        )
    spec = replace(spec, decomposition=method)
    ranks, skipped = chosen_layers(model, spec, rank)
    net = copy.deepcopy(model)
    report: dict[str, Any] = {}
    for name, r in tqdm(ranks.items(), desc="decompose", unit="layer", disable=None, leave=False):
        conv = conv_of(net, name, spec.arch)
        try:
            fitted = block.from_conv(conv, r, seed=seed)
        except (UsageError, DataError) as error:
            raise type(error)(f"layer {name!r}: {error}") from None
        report[name] = {"rank": r, **_fit_report(conv, fitted)}
        net.set_submodule(name, fitted)
    step = {"method": method, "seed": seed, "layers": report, "skipped": skipped}
    logger.info("%d layers decomposed, %d left dense", len(ranks), len(skipped))
    decomposed = replace(
        spec,
        ranks={**spec.ranks, **ranks},
        provenance={**spec.provenance, "decompose": step},
    )
    if calibration is not None:
        decomposed = _calibrated(net, decomposed, model, spec, calibration, seed)
    return net, decomposed


def _fit_report(conv: nn.Conv2d, block: Decomposition) -> dict[str, float]:
    """Return the mean over filters of ||W - W'||^2 / ||W||^2, and the largest sum of ||term||^2 / ||W||^2."""
    weight = conv.weight.detach().cpu().double().flatten(1)
    approximation = block.to_dense().weight.detach().cpu().double().flatten(1)
    energy = weight.square().sum(1)
    alive = energy > 0
    if not alive.any():
        return {"nmse": 0.0, "cancellation": 0.0}
    error = (weight - approximation).square().sum(1)[alive] / energy[alive]
    cancellation = block.term_energy().cpu()[alive] / energy[alive]
    return {"nmse": error.mean().item(), "cancellation": cancellation.max().item()}


def described(net: nn.Module, arch: str | Spec) -> Spec:
    """Return the spec of a network that is to be compressed, checked against it.

    Raises:
        UsageError: the network is of another architecture or spec, or deployed.
    """
    refuse_deployed(net)
    if isinstance(arch, str):
        return describe(net, arch)
    check_described(net, arch)
    return arch
