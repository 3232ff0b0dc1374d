"""What there is to choose from: methods and ranks of each layer, and channels that stay at each pruning rate."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.decompositions import DECOMPOSITIONS
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.search.probes import RateChoice, is_measured
from norton_det.spec import DecomposedLayer, Rank
from norton_det.structure.network import Network
from norton_det.structure.settings import decomposable_layers, rank_for, widths_at

LEVELS = 16
"""Rates are multiples of a 16th."""

Options = Mapping[str, Sequence[DecomposedLayer]]
"""Layer -> methods and ranks, those of a method one after the other and rising."""
KeptAtLevel = Mapping[RateChoice, Mapping[str, Tensor]]
"""Rate choice -> group -> channels that stay, where these are fewer than all."""


def options_of(network: Network, methods: Sequence[str]) -> dict[str, list[DecomposedLayer]]:
    """Return the methods and ranks to try of each layer: those with fewer weights than the dense layer has.

    A linear layer that reads flattened maps has those of methods that project the outputs, which need no moments of all
    its inputs.

    Raises:
        UsageError: an unknown method.
    """
    flat = {layer.name for layer in network.plan.layers if layer.spatial > 1}
    options: dict[str, list[DecomposedLayer]] = {}
    for method in methods:
        block = DECOMPOSITIONS[method]
        for name in decomposable_layers(network, method)[0]:
            layer: Any = network.module.get_submodule(name)
            if name not in flat or block.projects_outputs:
                multiple = network.architecture.round_to
                ranks = [rank_for(layer, method, rank, multiple) for rank in _with_midpoints(block.choices(layer))]
                ranks = [rank for rank in dict.fromkeys(ranks) if _weights(block, layer, rank) < 1]
                options.setdefault(name, []).extend(DecomposedLayer(method, rank) for rank in ranks)
    return options


def _weights(block: Any, layer: Any, rank: Rank) -> float:
    """Return the weights of a layer that is decomposed, as a fraction of the dense layer's."""
    outputs, inputs, *kernel = layer.weight.shape
    size = tuple(kernel) or (1, 1)
    weights: int = block.cost(inputs, outputs, size, (1, 1), (1, 1), rank)[1]
    return weights / int(layer.weight.numel())


def _with_midpoints(ranks: Sequence[Rank]) -> list[Rank]:
    """Return rising ranks, and one between each two of them where there are any."""
    between = [_middle(low, high) for low, high in pairwise(ranks)]
    return list(dict.fromkeys(rank for pair in zip(ranks, [*between, ranks[-1]], strict=True) for rank in pair))


def _middle(low: Rank, high: Rank) -> Rank:
    if isinstance(low, tuple) and isinstance(high, tuple):
        return (low[0] + high[0]) // 2, (low[1] + high[1]) // 2
    assert isinstance(low, int)
    assert isinstance(high, int)
    return (low + high) // 2


def kept_at_levels(network: Network, options: Options, criterion: str, seed: int) -> KeptAtLevel:
    """Return which channels stay at each level of each rate.

    Rates of groups that a layer reads whose part in the change cannot be measured are left out.

    Args:
        network: dense.
        options: those of the layers; a criterion that needs factors is asked at the middle one of each layer.
        criterion: registered name.
        seed: of decompositions, and of what the criterion draws.
    """
    net, plan, order = network.module, network.plan, network.architecture.rate_order
    blocks = _middle_ranks(net, options, seed) if CRITERIA[criterion].needs_factors else {}
    fixed = _read_unmeasured(network)
    kept: dict[RateChoice, dict[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    for number, entry in enumerate(tqdm(order, desc="criterion", unit="rate", disable=None, leave=False)):
        if not fixed.isdisjoint(entry.groups):
            continue
        for level in range(1, LEVELS):
            rates = np.zeros(len(order))
            rates[number] = level / LEVELS
            widths = widths_at(network, rates)
            narrowed = {}
            for group in entry.groups:
                width = int(widths[group])
                if 0 < width < plan.widths[group]:
                    writers = [blocks.get(name) or net.get_submodule(name) for name in plan.writers(group)]
                    narrowed[group] = select_channels(writers, width, criterion, generator)[0]
            if narrowed:
                kept[RateChoice(number, level)] = narrowed
    return kept


def _read_unmeasured(network: Network) -> set[str]:
    """Return the groups that a layer reads of a kind that is not measured."""
    groups: set[str] = set()
    for layer in network.plan.layers:
        if not layer.in_place and not is_measured(network.module.get_submodule(layer.name)):
            groups |= {*layer.reads}
    return groups


def _middle_ranks(net: nn.Module, options: Options, seed: int) -> dict[str, nn.Module]:
    """Return layers decomposed at the middle of their ranks, whose factors stand for those of all ranks."""
    blocks: dict[str, nn.Module] = {}
    for name, tried in tqdm(options.items(), desc="decompose", unit="layer", disable=None, leave=False):
        layer: Any = net.get_submodule(name)
        for method in dict.fromkeys(option.method for option in tried):
            ranks = [option.rank for option in tried if option.method == method]
            block, rank = DECOMPOSITIONS[method], ranks[len(ranks) // 2]
            if name not in blocks and block.like(layer, rank).factors() is not None:
                blocks[name] = block.from_layer(layer, rank, seed=seed)
    return blocks
