"""The second step: remove whole filters."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.calibrate import calibrated
from norton_det.channels.narrow import narrow_network
from norton_det.compression.network import network_to_compress
from norton_det.models.tasks import Images
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.spec import Spec
from norton_det.structure.network import Network
from norton_det.structure.settings import kept_widths

logger = logging.getLogger(__name__)


def prune(
    model: nn.Module,
    arch: str | Spec,
    rates: str | Sequence[float],
    *,
    criterion: str = "pabs",
    calibration: Images | None = None,
    scope: str | None = None,
    round_to: int = 1,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Remove whole filters, and all that read or accompany them.

    Each channel group keeps ``int(width * (1 - rate))`` channels; the layers that write it (all of a residual stage)
    keep the same ones. Every choice is made on the network as it was given. Of a network that was pruned before, the
    rates are relative to its present widths; the log says so, and the provenance keeps the step before.

    Args:
        model: the network, which stays as it is.
        arch: registered name of its architecture, or its spec.
        rates: in the publication's notation or as numbers, in the architecture's order; more than needed may be given.
        criterion: registered name.
        calibration: images on which the layers that are left make up for what is gone, as in :func:`compress`.
        scope: the part of the network that the rates are of, as in :func:`compress`.
        round_to: multiple to which widths are rounded down, as in :func:`compress`.
        seed: of the criterion ``random``.

    Returns:
        The narrower network, and its spec.

    Raises:
        UsageError: an unknown criterion, too few rates, a rate outside 0 <= rate < 1 or that leaves no filter.

    Example:
        >>> import norton_det as nd
        >>> net = nd.vgg16_bn_cifar(weights=None)
        >>> small, spec = nd.prune(net, "vgg16_bn_cifar", "[0.5]*13", criterion="norm")
        >>> small.features[0].out_channels
        32
    """
    before = network_to_compress(model, arch, scope, round_to)
    after = pruned(before, rates, criterion=criterion, seed=seed)
    if calibration is not None:
        after = calibrated(after, before, calibration, seed=seed)
    return after.handed_out()


def pruned(network: Network, rates: str | Sequence[float], *, criterion: str, seed: int) -> Network:
    """Return a narrower copy of the network; arguments and errors as of :func:`prune`."""
    CRITERIA.check(criterion)
    spec, plan = network.spec, network.plan
    widths = {group: width for group, width in kept_widths(network, rates).items() if width < plan.widths[group]}
    _warn_of_narrowed(network, widths)
    net = copy.deepcopy(network.module)
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
    step: dict[str, Any] = {"rates": text, "criterion": criterion, "seed": seed, "used": used}
    if "prune" in spec.provenance:
        step["before"] = spec.provenance["prune"]
    spec = replace(spec, widths={**spec.widths, **widths}, kept={**spec.kept, **original})
    return replace(network, module=net, spec=spec).with_step("prune", step)


def _warn_of_narrowed(network: Network, widths: Mapping[str, int]) -> None:
    full, present = network.architecture.plan.widths, network.plan.widths
    if narrowed := [group for group in widths if present[group] < full[group]]:
        logger.warning(
            "the network was pruned before: rates are relative to its present widths (group %s: %d of %d channels, now "
            "%d); %d groups are narrowed again",
            *(narrowed[0], present[narrowed[0]], full[narrowed[0]], widths[narrowed[0]], len(narrowed)),
        )
