"""Settings: a rank and a list of pruning rates, the publication's way to say how a network is compressed.

From a setting follows a :class:`Spec`, which layers it decomposes and how many channels each group keeps; which ones
these are is decided by the weights, in :mod:`norton_det.compress`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from norton_det.channels.plan import ChannelPlan
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import Rank, Spec, check_rate, is_rank, parse_ranks, parse_rates
from norton_det.structure.build import build, conv_of

Ranks = Rank | str | Mapping[str, Rank]
"""One rank for all layers, one for each in the network's order ("[2]*9+[3]*18", 0: dense), or by the layer's name."""


def spec_of_setting(
    arch: str,
    rank: Ranks | None = None,
    rates: str | Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    decomposition: str = "cp",
) -> Spec:
    """Return the spec of the network to which a setting leads, without any weights.

    Args:
        arch: registered name of the architecture.
        rank: of every k x k convolution, or of each (:data:`Ranks`); None decomposes nothing.
        rates: in the publication's notation or as numbers; None prunes nothing.
        num_classes: None is the architecture's default.
        decomposition: registered name.

    Raises:
        UsageError: an unknown name, a wrong rank or rate, a list of ranks or rates that is too short.
    """
    spec = Spec(arch, num_classes or ARCHITECTURES[arch].num_classes, decomposition=decomposition)
    full = current_plan(spec).widths
    if rank is not None:
        spec = replace(spec, ranks=chosen_layers(build(spec, "meta"), spec, rank)[0])
    if rates is not None:
        widths = kept_widths(spec, rates)
        spec = replace(spec, widths={group: width for group, width in widths.items() if width < full[group]})
    return spec


def current_plan(spec: Spec) -> ChannelPlan:
    """Return the channel plan of the network of ``spec``, each group as wide as it is there."""
    plan = ARCHITECTURES[spec.arch].plan
    return replace(plan, widths={**plan.widths, **spec.widths})


def kept_widths(spec: Spec, rates: str | Sequence[float]) -> dict[str, int]:
    """Return what each channel group that has a rate is to keep.

    Raises:
        UsageError: too few rates, a rate outside 0 <= rate < 1 or that leaves no filter.
    """
    order = ARCHITECTURES[spec.arch].rate_order
    numbers = parse_rates(rates) if isinstance(rates, str) else [check_rate(rate, "rates") for rate in rates]
    if len(numbers) < len(order):
        names = ", ".join(name for name, _ in order)
        raise UsageError(f"rates has {len(numbers)} values; {spec.arch} takes {len(order)}: {names}")
    before, after = current_plan(spec).widths, widths_at(spec, np.array(numbers))
    kept: dict[str, int] = {}
    for rate, (_, groups) in zip(numbers, order, strict=False):
        for group in groups:
            kept[group] = int(after[group])
            if kept[group] < 1:
                where = f"{spec.arch} group {group!r}"
                raise UsageError(f"{where}: rate {rate} leaves none of its {before[group]} filters")
    return kept


def widths_at(spec: Spec, rates: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """Return the width of every channel group at many settings: ``int(width * (1 - rate))``, as published.

    Args:
        spec: the network before.
        rates: in the architecture's order, of shape (P, ...), P at least the number of its rates.

    Returns:
        group -> widths of shape (...), 0 where nothing is left.
    """
    architecture, plan = ARCHITECTURES[spec.arch], current_plan(spec)
    reads = {layer.writes: layer.reads for layer in plan.layers if layer.writes in architecture.keeps_width}
    widths = {group: np.full(rates.shape[1:], width) for group, width in plan.widths.items()}
    for rate, (_, groups) in zip(rates, architecture.rate_order, strict=False):
        for group in groups:
            if group in reads:
                widths[group] = np.minimum(widths[group], sum(widths[read] for read in reads[group]))
            widths[group] = (widths[group] * (1 - rate)).astype(np.int64)
    return widths


def chosen_layers(net: nn.Module, spec: Spec, rank: Ranks) -> tuple[dict[str, Rank], dict[str, str]]:
    """Return the rank of each layer to decompose, and why the other convolutions of the plan are left.

    Args:
        net: the network of ``spec``, on any device.
        spec: what it is.
        rank: one for all k x k convolutions of the plan but those that the architecture keeps dense, a list of theirs
            in the order of the plan, or by layer.

    Raises:
        UsageError: rank below 1 or of the wrong kind, too few ranks, a named layer that is no convolution.
    """
    block = DECOMPOSITIONS[spec.decomposition]
    if isinstance(rank, Mapping):  # by name also what is kept dense otherwise
        return {name: _rank_of(block, conv_of(net, name, spec.arch), name, own) for name, own in rank.items()}, {}
    layers, skipped = decomposable_layers(net, spec)
    ranks = parse_ranks(rank) if isinstance(rank, str) else [_at_least_1(rank)] * len(layers)
    if len(ranks) < len(layers):
        raise UsageError(f"rank has {len(ranks)} values; {spec.arch} takes {len(layers)}: {', '.join(layers)}")
    chosen = {}
    for name, own in zip(layers, ranks, strict=False):
        if own == 0:
            skipped[name] = "rank 0"
        else:
            chosen[name] = _rank_of(block, conv_of(net, name, spec.arch), name, own)
    return chosen, skipped


def _rank_of(block: type[Decomposition], conv: nn.Conv2d, name: str, rank: Rank) -> Rank:
    try:
        return block.rank_for(conv, rank)
    except UsageError as error:
        raise UsageError(f"layer {name!r}: {error}") from None


def _at_least_1(rank: Rank) -> Rank:
    if not is_rank(rank):
        raise UsageError(f"rank is {rank}; expected at least 1")
    return rank


def decomposable_layers(net: nn.Module, spec: Spec) -> tuple[list[str], dict[str, str]]:
    """Return the convolutions that one rank for all is for, and why each of the others is left."""
    architecture = ARCHITECTURES[spec.arch]
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for layer in architecture.plan.layers:
        module = net.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d):
            if reason := _why_not(module) or architecture.kept_dense.get(layer.name):
                skipped[layer.name] = reason
            else:
                chosen.append(layer.name)
    return chosen, skipped


def _why_not(conv: nn.Conv2d) -> str | None:
    if conv.groups == conv.in_channels > 1:
        return "depthwise"
    if conv.groups > 1:
        return f"grouped (groups={conv.groups})"
    return "1x1" if tuple(conv.kernel_size) == (1, 1) else None
