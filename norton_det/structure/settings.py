"""Compression configurations: a rank and a list of pruning rates, the publication's way to say how to compress.

From a configuration follows a :class:`Spec`: which layers are decomposed and how many channels each group keeps. Which
channels these are depends on the weights, and is chosen by :mod:`norton_det.compression`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.notation import check_rate, parse_ranks, parse_rates
from norton_det.spec import DecomposedLayer, Rank, Spec, is_rank
from norton_det.structure.build import build_network, conv_of
from norton_det.structure.network import Network

Ranks = Rank | str | Mapping[str, Rank]
"""One rank for all layers, one for each in the network's order ("[2]*9+[3]*18", 0: dense), or by the layer's name."""


def spec_from_configuration(
    arch: str,
    rank: Ranks | None = None,
    rates: str | Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    decomposition: str = "cp",
) -> Spec:
    """Return the spec to which a configuration leads, without any weights.

    Args:
        arch: registered name of the architecture.
        rank: of every k x k convolution, or of each (:data:`Ranks`); None decomposes nothing.
        rates: in the publication's notation or as numbers; None prunes nothing.
        num_classes: None is the architecture's default.
        decomposition: registered name.

    Raises:
        UsageError: an unknown name, a wrong rank or rate, a list of ranks or rates that is too short.
    """
    DECOMPOSITIONS.check(decomposition)
    dense = dense_network(arch, num_classes)
    spec = dense.spec
    if rank is not None:
        spec = replace(spec, decompositions=chosen_layers(dense, rank, decomposition)[0])
    if rates is not None:
        full = dense.plan.widths
        widths = kept_widths(dense, rates)
        spec = replace(spec, widths={group: width for group, width in widths.items() if width < full[group]})
    return spec


def dense_network(arch: str, num_classes: int | None = None, device: str = "meta") -> Network:
    """Return the dense network of an architecture, by default without memory.

    Raises:
        UsageError: an unknown architecture.
    """
    architecture = ARCHITECTURES[arch]
    return build_network(Spec(arch, num_classes or architecture.num_classes), architecture, device)


def kept_widths(network: Network, rates: str | Sequence[float]) -> dict[str, int]:
    """Return what each channel group that has a rate is to keep.

    Raises:
        UsageError: too few rates, a rate outside 0 <= rate < 1 or that leaves no filter.
    """
    arch, order = network.architecture.name, network.architecture.rate_order
    numbers = parse_rates(rates) if isinstance(rates, str) else [check_rate(rate, "rates") for rate in rates]
    if len(numbers) < len(order):
        names = ", ".join(entry.name for entry in order)
        raise UsageError(f"rates has {len(numbers)} values; {arch} takes {len(order)}: {names}")
    before, after = network.plan.widths, widths_at(network, np.array(numbers))
    kept: dict[str, int] = {}
    for rate, entry in zip(numbers, order, strict=False):
        for group in entry.groups:
            kept[group] = int(after[group])
            if kept[group] < 1:
                where = f"{arch} group {group!r}"
                raise UsageError(f"{where}: rate {rate} leaves none of its {before[group]} filters")
    return kept


def widths_at(network: Network, rates: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """Return the width of every channel group for many configurations: ``int(width * (1 - rate))``, as published.

    Args:
        network: the network before.
        rates: in the architecture's order, of shape (P, ...), P at least the number of its rates.

    Returns:
        group -> widths of shape (...), 0 where nothing is left.
    """
    architecture, plan = network.architecture, network.plan
    reads = {layer.writes: layer.reads for layer in plan.layers if layer.writes in architecture.keeps_width}
    widths = {group: np.full(rates.shape[1:], width) for group, width in plan.widths.items()}
    for rate, entry in zip(rates, architecture.rate_order, strict=False):
        for group in entry.groups:
            if group in reads:
                widths[group] = np.minimum(widths[group], sum(widths[read] for read in reads[group]))
            widths[group] = (widths[group] * (1 - rate)).astype(np.int64)
    return widths


def chosen_layers(network: Network, rank: Ranks, method: str) -> tuple[dict[str, DecomposedLayer], dict[str, str]]:
    """Return how each layer is to be decomposed, and why the other convolutions of the plan are left dense.

    Args:
        network: on any device.
        rank: one for all k x k convolutions of the plan but those that the architecture keeps dense, a list of theirs
            in the order of the plan, or by layer.
        method: registered name of the decomposition.

    Raises:
        UsageError: rank below 1 or of the wrong kind, too few ranks, a named layer that is no convolution.
    """
    net, architecture, block = network.module, network.architecture, DECOMPOSITIONS[method]

    def decomposed(name: str, rank: Rank) -> DecomposedLayer:
        return DecomposedLayer(method, _rank_of(block, conv_of(net, name, architecture), name, rank))

    if isinstance(rank, Mapping):  # by name also what is kept dense otherwise
        return {name: decomposed(name, value) for name, value in rank.items()}, {}
    layers, skipped = decomposable_layers(network)
    ranks = parse_ranks(rank) if isinstance(rank, str) else [_at_least_1(rank)] * len(layers)
    if len(ranks) < len(layers):
        raise UsageError(f"rank has {len(ranks)} values; {architecture.name} takes {len(layers)}: {', '.join(layers)}")
    chosen = dict(zip(layers, ranks, strict=False))
    skipped |= {name: "rank 0" for name, value in chosen.items() if value == 0}
    return {name: decomposed(name, value) for name, value in chosen.items() if value != 0}, skipped


def _rank_of(block: type[Decomposition], conv: nn.Conv2d, name: str, rank: Rank) -> Rank:
    try:
        return block.rank_for(conv, rank)
    except UsageError as error:
        raise UsageError(f"layer {name!r}: {error}") from None


def _at_least_1(rank: Rank) -> Rank:
    if not is_rank(rank):
        raise UsageError(f"rank is {rank}; expected at least 1")
    return rank


def decomposable_layers(network: Network) -> tuple[list[str], dict[str, str]]:
    """Return the convolutions that one rank for all is meant for, and why each of the others is left dense."""
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for layer in network.plan.layers:
        module = network.module.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d):
            reason = _why_not(module) or network.architecture.kept_dense.get(layer.name)
            if not layer.name.startswith(within := network.architecture.within):
                reason = f"outside {within.rstrip('.')}"
            if reason:
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
