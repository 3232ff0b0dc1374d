"""Compression: decompose a network's filters, then prune whole filters by their factors."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum

from norton_det.calibration.calibrate import calibrated
from norton_det.compression.decompose import check_solver, decomposed
from norton_det.compression.network import network_to_compress
from norton_det.compression.prune import pruned
from norton_det.cost.budget import Budget
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Images
from norton_det.models.weights import initial_network, names_of
from norton_det.pruning import CRITERIA
from norton_det.search.allocation import allocate
from norton_det.spec import Spec
from norton_det.structure.describe import described
from norton_det.structure.network import Network
from norton_det.structure.settings import Methods, Ranks, kept_widths


def compress(
    model: nn.Module | str | Path | WeightsEnum | None,
    *,
    arch: str | Spec,
    rank: Ranks | None = None,
    rates: str | Sequence[float] | None = None,
    criterion: str = "pabs",
    decomposition: Methods | Sequence[str] | None = None,
    solver: str | None = None,
    num_classes: int | None = None,
    calibration: Images | None = None,
    budget: Budget | None = None,
    scope: str | None = None,
    round_to: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Spec]:
    """Compress a network: decompose its filters, then prune whole filters.

    Args:
        model: the network, which stays as it is; or where its weights come from: a state-dict file, torchvision's
            weights or their name, None for seeded random ones.
        arch: registered name of the architecture of a dense ``model``, or the spec of one compressed before.
        rank: of every layer that the decomposition is meant for, of each in the network's order ("[2]*9+[3]*18", 0
            leaves it dense), or by layer; None decomposes nothing.
        rates: the fraction of the filters to remove, in the publication's notation or as numbers, in the architecture's
            order, relative to the width that ``model`` has; None prunes nothing.
        criterion: registered name of what chooses the filters to keep (pabs, csa, vbd, norm, random). For groups that
            are written by a layer without factors, or whose factors span everything in every mode (three input channels
            from rank 3 on: all angles are 0), a criterion that needs factors is replaced by norm; the provenance has
            the one that was used.
        decomposition: registered name: "cp" and "tucker2" are meant for k x k convolutions, "svd" for linear layers
            and 1x1 convolutions. Or that of each layer, where ``rank`` is by layer. With a budget also several, of
            which one is chosen for each layer. None is "cp", and for a whole detector within a budget all three.
        solver: which of the decomposition's solvers fits the filters: for CP "als" or "tensorly", as in the
            publication; None takes the default one.
        num_classes: for weights that come from a file or a seed; None takes the file's or the architecture's.
        calibration: a few hundred images, without labels, on which the remaining layers are refitted to the outputs of
            the given network (:func:`norton_det.calibration.layerwise.calibrate`). Classifiers: (N, 3, H, W),
            normalised; detectors: a list of (3, H, W) between 0 and 1.
        budget: limits of what the result costs, in place of ``rank`` and ``rates``: both are then chosen for each layer
            on the images of ``calibration`` (:func:`norton_det.search.allocation.allocate`).
        scope: the part of the network that is compressed, "backbone" or "detector" (all of it); None is the
            architecture's default: a detector's backbone, as published. Classifiers have none.
        round_to: multiple to which widths and ranks are rounded down, where these are numbers of channels (all but CP's
            ranks): 8, 16 or 32 as a processor's kernels want it. Never 0, never above the full width.
        seed: of random weights, of the decomposition's starts and of the criterion ``random``.
        device: where a network is compressed that is read; one that is given as ``model`` stays on its device.

    Returns:
        The compressed network and its spec. The network has the class of ``model`` (of what is inside, if that is a
        wrapper such as ``DistributedDataParallel``). Its layers keep training mode, hooks and what is frozen.

    Raises:
        UsageError: an unknown name or scope, a wrong rank or rate, a list of ranks or rates that is too short; one rank
            for all where layers have another one already; layers that share a module or a tensor; a budget that cannot
            be met, or without ``calibration``, or with a rank or rates.
        DataError: a weights file that is damaged or does not fit, weights that are not finite.

    Example:
        >>> import norton_det as nd
        >>> net, spec = nd.compress(None, arch="resnet56_cifar", rank=1, rates="[0.]+[0.5]*29")
        >>> spec.widths["layer2"], net.layer2[0].conv2.rank
        (16, 1)
    """
    methods = _checked_methods(decomposition, solver, budget)
    CRITERIA.check(criterion)
    before = _given(model, arch, num_classes, seed, scope, round_to, device)
    network = before
    if budget is not None:
        if rank is not None or rates is not None or calibration is None:
            raise UsageError(
                "a budget takes the place of rank and rates, and needs calibration images to choose them on"
            )
        if isinstance(decomposition, Mapping):
            raise UsageError("a budget chooses the layers; expected names as decomposition, not names by layer")
        options: dict[str, Any] = {"decomposition": decomposition, "criterion": criterion, "seed": seed}
        allocation = allocate(before, budget, calibration, **options)
        rank, rates, methods = allocation.rank, allocation.rates, allocation.decomposition
        network = network.with_step("allocate", asdict(allocation))
    if rank is None and budget is None and isinstance(decomposition, Mapping):
        raise UsageError("decomposition is by layer and rank is None; expected the ranks of the same layers")
    if rates is not None:
        kept_widths(before, rates)  # what can be refused is refused before the work begins
    if rank is not None:
        fit: dict[str, Any] = {"solver": solver, "seed": seed, "calibrating": calibration is not None}
        network = decomposed(network, rank, method=methods, **fit)
    if rates is not None:
        network = pruned(network, rates, criterion=criterion, seed=seed)
    if network.module is before.module:
        network = replace(network, module=copy.deepcopy(network.module))
    if calibration is not None and (rank is not None or rates is not None):
        network = calibrated(network, before, calibration, seed=seed)
    return network.handed_out()


def _checked_methods(
    decomposition: Methods | Sequence[str] | None, solver: str | None, budget: Budget | None
) -> Methods:
    """Return the decomposition of all layers, or of each, as far as it is known before a budget is kept."""
    if decomposition is None:
        methods: Methods = "cp"
    elif isinstance(decomposition, (str, Mapping)):
        methods = decomposition
    elif budget is None:
        raise UsageError(f"decomposition is {decomposition!r} without a budget; expected one name, or names by layer")
    else:
        methods = {name: name for name in decomposition}
    check_solver(methods, solver)
    return methods


def _given(
    model: nn.Module | str | Path | WeightsEnum | None,
    arch: str | Spec,
    num_classes: int | None,
    seed: int,
    scope: str | None,
    round_to: int,
    device: torch.device | str,
) -> Network:
    """Return the network to compress, with its source in the provenance."""
    if isinstance(model, nn.Module):
        network, source = network_to_compress(model, arch, scope, round_to), "a model object"
    elif isinstance(arch, Spec):
        raise UsageError("arch is a Spec; expected the network that it describes as model")
    else:
        architecture = ARCHITECTURES[arch].scoped(scope).rounding_to(round_to)
        net, source = initial_network(architecture, model, num_classes=num_classes, seed=seed)
        network = described(net.to(device), architecture)
        network = replace(network, spec=replace(network.spec, **names_of(architecture, model)))
    history = {"source": source, "torch": torch.__version__, **network.spec.provenance}
    return replace(network, spec=replace(network.spec, provenance=history))
