"""Compression configurations: a rank and a list of pruning rates, the publication's way to say how to compress.

From a configuration follows a :class:`Spec`: which layers are decomposed and how many channels each group keeps. Which
channels these are depends on the weights, and is chosen by :mod:`norton_det.compression`.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from norton_det.channels.plan import Layer
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.decompositions.conv import DenseLayer, not_pointwise, pair
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.notation import check_rate, parse_ranks, parse_rates
from norton_det.spec import DecomposedLayer, Rank, Spec, is_rank
from norton_det.structure.build import build_network, layer_of
from norton_det.structure.network import Network

Ranks = Rank | str | Mapping[str, Rank]
"""One rank for all layers, one for each in the network's order ("[2]*9+[3]*18", 0: dense), or by the layer's name.

A name with ``*`` is that of all layers that it matches and that the decomposition is meant for, but for those that are
named without. Where several match a layer, the first one counts.
"""
Methods = str | Mapping[str, str]
"""Registered name of the decomposition of all layers, or of each by the layer's name, as the ranks then are."""


def spec_from_configuration(
    arch: str,
    rank: Ranks | None = None,
    rates: str | Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    decomposition: Methods = "cp",
    scope: str | None = None,
    round_to: int = 1,
) -> Spec:
    """Return the spec to which a configuration leads, without any weights.

    Args:
        arch: registered name of the architecture.
        rank: of every layer that the decomposition is meant for, or of each (:data:`Ranks`); None decomposes nothing.
        rates: in the publication's notation or as numbers; None prunes nothing.
        num_classes: None is the architecture's default.
        decomposition: registered name, or of each layer (:data:`Methods`).
        scope: the part of the network that rank and rates are of, "backbone" or "detector"; None is the
            architecture's default.
        round_to: multiple to which widths and ranks are rounded down (:func:`rounded`).

    Raises:
        UsageError: an unknown name, a wrong rank or rate, a list of ranks or rates that is too short.
    """
    check_methods(decomposition)
    dense = dense_network(arch, num_classes, scope=scope, round_to=round_to)
    spec = dense.spec
    if rank is not None:
        spec = replace(spec, decompositions=chosen_layers(dense, rank, decomposition)[0])
    if rates is not None:
        full = dense.plan.widths
        widths = kept_widths(dense, rates)
        spec = replace(spec, widths={group: width for group, width in widths.items() if width < full[group]})
    return spec


def dense_network(
    arch: str,
    num_classes: int | None = None,
    device: str = "meta",
    *,
    scope: str | None = None,
    round_to: int = 1,
) -> Network:
    """Return the dense network of an architecture, by default without memory, and with one of its scopes chosen.

    Raises:
        UsageError: an unknown architecture or scope, or ``round_to`` below 1.
    """
    architecture = ARCHITECTURES[arch].scoped(scope).rounding_to(round_to)
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

    With a multiple to round to, that is rounded down (:func:`rounded`).

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
            full = widths[group]
            widths[group] = rounded((full * (1 - rate)).astype(np.int64), architecture.round_to, full)
    return widths


def rounded(values: Any, multiple: int, full: Any) -> Any:
    """Return numbers of channels rounded down to a multiple, but not below one; ``full`` is the limit, and stays.

    Example:
        >>> rounded(np.array([100, 3, 0, 256]), 16, 256)
        array([ 96,  16,  16, 256])
    """
    if multiple == 1:
        return values
    return np.where(values == full, full, np.minimum(full, np.maximum(values // multiple, 1) * multiple))


def check_methods(methods: Methods) -> list[str]:
    """Return the names of the decompositions, each once.

    Raises:
        UsageError: one is unknown.
    """
    names = list(dict.fromkeys(methods.values() if isinstance(methods, Mapping) else [methods]))
    for name in names:
        DECOMPOSITIONS.check(name)
    return names


def chosen_layers(network: Network, rank: Ranks, method: Methods) -> tuple[dict[str, DecomposedLayer], dict[str, str]]:
    """Return how each layer is to be decomposed, and why the other layers of the plan are left dense.

    Args:
        network: on any device.
        rank: one for all layers of :func:`decomposable_layers`, a list of theirs in the order of the plan, or by layer.
        method: registered name of the decomposition, or by layer; then so are the ranks.

    Raises:
        UsageError: rank below 1 or of the wrong kind, too few ranks, a named layer that cannot be decomposed, ranks and
            methods by different names.
    """
    architecture = network.architecture

    def decomposed(name: str, method: str, rank: Rank) -> DecomposedLayer:
        return DecomposedLayer(method, rank_of(network, name, method, rank))

    if isinstance(rank, Mapping):  # by name also what is kept dense otherwise
        methods = method if isinstance(method, Mapping) else dict.fromkeys(rank, method)
        _check_same_names(rank, methods)
        keys = _by_layer(network, methods)
        return {name: decomposed(name, methods[key], rank[key]) for name, key in keys.items()}, {}
    if isinstance(method, Mapping):
        raise UsageError(f"decomposition is by layer and rank is {rank!r}; expected the ranks of the same layers")
    layers, skipped = decomposable_layers(network, method)
    ranks = parse_ranks(rank) if isinstance(rank, str) else [_at_least_1(rank)] * len(layers)
    if len(ranks) < len(layers):
        raise UsageError(f"rank has {len(ranks)} values; {architecture.name} takes {len(layers)}: {', '.join(layers)}")
    chosen = dict(zip(layers, ranks, strict=False))
    skipped |= {name: "rank 0" for name, value in chosen.items() if value == 0}
    return {name: decomposed(name, method, value) for name, value in chosen.items() if value != 0}, skipped


def _by_layer(network: Network, methods: Mapping[str, str]) -> dict[str, str]:
    """Return for each layer that is named, or matched by a name with ``*``, that name.

    Raises:
        UsageError: a name with ``*`` matches no layer that its method is meant for.
    """
    keys = {name: name for name in methods if "*" not in name}
    for pattern, method in methods.items():
        if "*" in pattern:
            meant = decomposable_layers(network, method)[0]
            matched = fnmatch.filter(meant, pattern)
            if not matched:
                raise UsageError(f"{pattern!r} matches no layer for {method!r}; expected some of: {', '.join(meant)}")
            keys = {**dict.fromkeys(matched, pattern), **keys}
    order = [layer.name for layer in network.plan.layers if layer.name in keys]
    return {name: keys[name] for name in dict.fromkeys([*order, *keys])}


def _check_same_names(rank: Mapping[str, Rank], methods: Mapping[str, str]) -> None:
    for (has, one), (lacks, other) in permutations((("rank", rank), ("decomposition", methods))):
        if missing := [name for name in one if name not in other]:
            raise UsageError(f"{lacks} lacks layer {missing[0]!r}, which {has} has; expected the same layers in both")


def rank_of(network: Network, name: str, method: str, rank: Rank) -> Rank:
    """Return the rank that a layer gets when ``rank`` is asked for: limited by its size, and rounded.

    Raises:
        UsageError: there is no such layer, it cannot be decomposed by the method, or ``rank`` is none of it.
    """
    layer = layer_of(network.module, name, network.architecture)
    try:
        return rank_for(layer, method, rank, network.architecture.round_to)
    except UsageError as error:
        raise UsageError(f"layer {name!r}: {error}") from None


def rank_for(layer: DenseLayer, method: str, rank: Rank, multiple: int) -> Rank:
    """Return the rank of a method for ``layer``, limited by its size; rounded, if it is a number of channels."""
    block = DECOMPOSITIONS[method]
    limited = block.rank_for(layer, rank)
    if multiple == 1 or not block.rank_is_width:
        return limited
    numbers = [max(value // multiple, 1) * multiple for value in pair(limited)]
    return block.rank_for(layer, (numbers[0], numbers[1]) if isinstance(limited, tuple) else numbers[0])


def _at_least_1(rank: Rank) -> Rank:
    if not is_rank(rank):
        raise UsageError(f"rank is {rank}; expected at least 1")
    return rank


def decomposable_layers(network: Network, method: str = "cp") -> tuple[list[str], dict[str, str]]:
    """Return the layers that one rank for all is meant for, and why each of the others is left dense.

    These are the layers of the plan, in the architecture's scope, that suit the decomposition, but for those that the
    architecture keeps dense, and for linear layers and 1x1 convolutions that write no group, as those that predict.
    """
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for layer in network.plan.layers:
        module = network.module.get_submodule(layer.name)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if reason := why_dense(network.architecture, layer, module, method):
                skipped[layer.name] = reason
            else:
                chosen.append(layer.name)
    return chosen, skipped


def why_dense(architecture: Architecture, layer: Layer, module: DenseLayer, method: str) -> str | None:
    """Return why one rank for all leaves a layer of the plan dense; None where it is meant for it.

    Args:
        architecture: with its scope.
        layer: of its plan.
        module: the layer, dense.
        method: registered name of the decomposition.
    """
    if not layer.name.startswith(architecture.within):
        return f"outside {architecture.within.rstrip('.')}"
    if reason := DECOMPOSITIONS[method].suits(module) or architecture.kept_dense.get(layer.name):
        return reason
    return "writes no channel group" if layer.writes is None and not not_pointwise(module) else None
