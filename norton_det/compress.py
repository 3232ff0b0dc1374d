"""Compression: decompose a network's filters, then prune whole filters by their factors."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from tqdm import tqdm

from norton_det.allocation import allocate
from norton_det.build import check_described, conv_of, describe
from norton_det.calibration import Images, calibrate
from norton_det.channels.narrow import narrow_network
from norton_det.cost import Budget
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import DataError, UsageError
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.setting import Ranks, chosen_layers, current_plan, kept_widths
from norton_det.spec import Spec
from norton_det.weights import initial_network

logger = logging.getLogger(__name__)


def compress(
    model: nn.Module | str | Path | WeightsEnum | None,
    *,
    arch: str | Spec,
    rank: Ranks | None = None,
    rates: str | Sequence[float] | None = None,
    criterion: str = "pabs",
    decomposition: str = "cp",
    num_classes: int | None = None,
    calibration: Images | None = None,
    budget: Budget | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Compress a network: decompose its filters, then prune whole filters.

    Args:
        model: the network, which stays as it is; or where its weights come from: a state-dict file, torchvision's
            weights or their name, None for seeded random ones.
        arch: registered name of the architecture of a dense ``model``, or the spec of one compressed before.
        rank: of every k x k convolution, of each in the network's order ("[2]*9+[3]*18", 0 leaves it dense), or by
            layer; None decomposes nothing.
        rates: what share of the filters goes, in the publication's notation or as numbers, in the architecture's order;
            None prunes nothing.
        criterion: which filters stay (pabs, csa, vbd, norm, random). Groups written by a layer without factors are
            judged by norm where the criterion needs factors.
        decomposition: registered name.
        num_classes: for weights that come from a file or a seed; None takes the file's or the architecture's.
        calibration: unlabelled images on which what is left is refitted to the network's own outputs, layer by layer
            (:func:`norton_det.calibration.calibrate`); a few hundred. Classifiers: (N, 3, H, W), normalised; detectors:
            a list of (3, H, W) between 0 and 1.
        budget: the most that the result may cost, in place of ``rank`` and ``rates``: both are then chosen, layer by
            layer, on the images of ``calibration`` (:func:`norton_det.allocation.allocate`).
        seed: of random weights, of the decomposition's starts and of the criterion ``random``.

    Returns:
        The compressed network (same class, same training mode) and its spec.

    Raises:
        UsageError: an unknown name, a wrong rank or rate, a list of ranks or rates that is too short; a budget that
            cannot be met, or without ``calibration``, or with a rank or rates.
        DataError: a weights file that is damaged or does not fit, weights that are not finite.
    """
    if isinstance(model, nn.Module):
        net, source = model, "a model object"
    elif isinstance(arch, str):
        net, source = initial_network(arch, model, num_classes=num_classes, seed=seed)
    else:
        raise UsageError("arch is a Spec; expected the network that it describes as model")
    original = net
    spec = before = _described(net, arch)
    spec = replace(spec, provenance={"source": source, "torch": torch.__version__, **spec.provenance})
    # What can be refused is refused before the work begins.
    if budget is not None:
        if rank is not None or rates is not None or calibration is None:
            raise UsageError(
                "a budget takes the place of rank and rates, and needs calibration images to choose them on"
            )
        found = allocate(
            net, spec.arch, budget, calibration, decomposition=decomposition, criterion=criterion, seed=seed
        )
        rank, rates = found.rank, found.rates
        spec = replace(spec, provenance={**spec.provenance, "allocate": asdict(found)})
    _ = CRITERIA[criterion], DECOMPOSITIONS[decomposition], None if rates is None else kept_widths(spec, rates)
    if rank is not None:
        net, spec = decompose(net, spec, rank, method=decomposition, seed=seed)
    if rates is not None:
        net, spec = prune(net, spec, rates, criterion=criterion, seed=seed)
    net = copy.deepcopy(net) if net is model else net
    if calibration is not None and net is not original:
        spec = _calibrated(net, spec, original, before, calibration, seed)
    return net, spec


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
    spec = _described(model, arch)
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


def prune(
    model: nn.Module,
    arch: str | Spec,
    rates: str | Sequence[float],
    *,
    criterion: str = "pabs",
    calibration: Images | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Remove whole filters, and all that read or accompany them.

    Each channel group keeps ``int(width * (1 - rate))`` channels; the layers that write it (all of a residual stage)
    keep the same ones. Every choice is made on the network as it was given.

    Args:
        model: the network, which stays as it is.
        arch: registered name of its architecture, or its spec.
        rates: in the publication's notation or as numbers, in the architecture's order; more than needed may be given.
        criterion: registered name.
        calibration: images on which the layers that are left make up for what is gone, as in :func:`compress`.
        seed: of the criterion ``random``.

    Returns:
        The narrower network, and its spec.

    Raises:
        UsageError: an unknown criterion, too few rates, a rate outside 0 <= rate < 1 or that leaves no filter.
    """
    spec = _described(model, arch)
    plan = current_plan(spec)
    widths = {group: width for group, width in kept_widths(spec, rates).items() if width < plan.widths[group]}
    _ = CRITERIA[criterion]
    net = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    for group, width in tqdm(widths.items(), desc="prune", unit="group", disable=None, leave=False):
        writers = [net.get_submodule(name) for name in plan.writers(group)]
        kept[group], used[group] = select_channels(writers, width, criterion, generator)
    narrow_network(net, plan, kept)
    original = {
        group: [spec.kept[group][c] for c in k] if group in spec.kept else k.tolist() for group, k in kept.items()
    }
    text = rates if isinstance(rates, str) else list(rates)
    step = {"rates": text, "criterion": criterion, "seed": seed, "used": used}
    pruned = replace(
        spec,
        widths={**spec.widths, **widths},
        kept={**spec.kept, **original},
        provenance={**spec.provenance, "prune": step},
    )
    if calibration is not None:
        pruned = _calibrated(net, pruned, model, spec, calibration, seed)
    return net, pruned


def _calibrated(net: nn.Module, spec: Spec, reference: nn.Module, before: Spec, images: Images, seed: int) -> Spec:
    """Calibrate ``net`` in place, and return its spec with a word on it."""
    plan = current_plan(before)
    kept = {}
    for group, width in spec.widths.items():
        if width < plan.widths[group]:
            own = list(before.kept.get(group, range(plan.widths[group])))
            kept[group] = torch.tensor([own.index(channel) for channel in spec.kept[group]])
    layers = calibrate(net, reference, plan, kept, images, seed=seed)
    step = {"images": len(images), "seed": seed, "layers": layers}
    return replace(spec, provenance={**spec.provenance, "calibrate": step})


def _described(net: nn.Module, arch: str | Spec) -> Spec:
    if isinstance(arch, str):
        return describe(net, arch)
    check_described(net, arch)
    return arch
