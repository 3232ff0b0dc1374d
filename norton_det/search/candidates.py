"""What is tried of each layer of a dense network: every rank, and every width of what it reads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.lockstep import LayerCall, observed
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import ChannelMap, columns_of
from norton_det.channels.plan import Layer
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.decompositions.conv import kernel_of
from norton_det.linalg.least_squares import LeastSquares
from norton_det.models.tasks import Images, as_inputs
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.spec import Rank
from norton_det.structure.network import Network
from norton_det.structure.settings import chosen_layers, widths_at

LEVELS = 16
"""Rates are multiples of a 16th."""
_RIDGE = 1e-3  # of the mean diagonal of the inputs' second moment
_SWEEPS = 3  # of a fit: it is compared, not kept


class RankChoice(NamedTuple):
    """Decompose a layer at a rank; None leaves it dense."""

    layer: str
    rank: Rank | None


class RateChoice(NamedTuple):
    """Raise a rate, by its number in the architecture's order, to a level: that many 16ths."""

    rate: int
    level: int


Choice = RankChoice | RateChoice
KeptAtLevel = Mapping[RateChoice, Mapping[str, Tensor]]
"""Rate choice -> group -> channels that stay, where these are fewer than all."""


@dataclass
class Trial:
    """What is tried of one layer.

    Attributes:
        mean: of the unfolded inputs, (D,); of a shortcut's outputs, (C,).
        choices: K of them.
        deltas: by how much the weights change with each, flat.
    """

    mean: Tensor
    choices: list[Choice] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)

    def add(self, choice: Choice, delta: Tensor) -> None:
        """Add a choice and the change of the weights that it makes."""
        self.choices.append(choice)
        self.deltas.append(delta.flatten().float())


def trials(network: Network, images: Images, *, decomposition: str, criterion: str, seed: int) -> dict[str, Trial]:
    """Pass the images forward, and fit every layer to its output with each rank and each width of what it reads.

    Args:
        network: dense, in evaluation mode.
        images: without labels, as the network takes them.
        decomposition: registered name.
        criterion: registered name.
        seed: of what is drawn.

    Returns:
        layer -> what is tried of it; layers of which nothing is tried are left out.
    """
    net, plan = network.module, network.plan
    options = _rank_options(network, decomposition)
    kept = _kept_at_levels(network, options, decomposition, criterion, seed)
    fits = _Fits(network, decomposition, kept, torch.Generator().manual_seed(seed), seed)
    read = {group for groups in kept.values() for group in groups}
    types = (nn.Conv2d, nn.Linear, ChannelMap)
    layers = {
        layer.name: layer
        for layer in plan.layers
        if isinstance(net.get_submodule(layer.name), types)
        and (layer.name in options or not read.isdisjoint(layer.reads))
    }
    result: dict[str, Trial] = {}
    with _forward(network, list(layers), images) as passing:
        for call in passing:
            trial = fits.of(call, layers[call.name], options.get(call.name, []))
            if trial.choices:
                result[call.name] = trial
    return result


@contextmanager
def _forward(network: Network, names: Sequence[str], images: Images) -> Iterator[Iterator[LayerCall]]:
    task = network.architecture.task
    images = as_inputs(images, network.module)
    with observed(network.module, names, lambda net: task.features_of(net, images)) as passing:
        yield iter(tqdm(passing, total=len(names), desc="measure", unit="layer", disable=None, leave=False))


def _rank_options(network: Network, decomposition: str) -> dict[str, list[Rank]]:
    """Return the ranks to try of each layer: those with fewer weights than the dense layer has."""
    block = DECOMPOSITIONS[decomposition]
    options = {}
    for name in chosen_layers(network, 1, decomposition)[0]:
        layer: Any = network.module.get_submodule(name)
        width_out, width_in = layer.weight.shape[:2]
        options[name] = [
            rank
            for rank in block.choices(layer)
            if block.cost(width_in, width_out, kernel_of(layer), (1, 1), (1, 1), rank)[1] < layer.weight.numel()
        ]
    return options


def _kept_at_levels(
    network: Network, options: Mapping[str, Sequence[Rank]], decomposition: str, criterion: str, seed: int
) -> KeptAtLevel:
    net, plan, order = network.module, network.plan, network.architecture.rate_order
    needs_factors = CRITERIA[criterion].needs_factors
    blocks = _middle_ranks(net, options, decomposition, seed) if needs_factors else {}
    kept: dict[RateChoice, dict[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    for number, entry in enumerate(order):
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


def _middle_ranks(
    net: nn.Module, options: Mapping[str, Sequence[Rank]], decomposition: str, seed: int
) -> dict[str, nn.Module]:
    """Return layers decomposed at the middle of their ranks, whose factors stand for those of all ranks."""
    blocks: dict[str, nn.Module] = {}
    for name, ranks in tqdm(options.items(), desc="decompose", unit="layer", disable=None, leave=False):
        if ranks:
            conv: Any = net.get_submodule(name)
            blocks[name] = DECOMPOSITIONS[decomposition].from_conv(conv, ranks[len(ranks) // 2], seed=seed)
    return blocks


@dataclass(frozen=True)
class _Fits:
    """What the fits of all layers share."""

    network: Network
    decomposition: str
    kept: KeptAtLevel
    generator: torch.Generator
    seed: int

    def of(self, call: LayerCall, layer: Layer, ranks: Sequence[Rank]) -> Trial:
        """Return what is tried of one layer, given its inputs and outputs."""
        module: Any = self.network.module.get_submodule(call.name)
        if isinstance(module, ChannelMap):
            return self._of_shortcut(module, call, layer)
        moments = Moments(module, self.generator)
        moments.add(call.inputs, call.output)
        weight = module.weight.detach().cpu().double().flatten(1)
        # The weights explain the output exactly, so that there is nothing to tell by which ridge does best.
        regression = moments.regression(weight, None).with_ridge(_RIDGE)
        trial = Trial(moments.means()[0].float())
        for rank in ranks:
            block = DECOMPOSITIONS[self.decomposition].from_conv(module, rank, seed=self.seed)
            block.refit(regression, seed=self.seed, sweeps=_SWEEPS)
            change = block.to_dense().weight.detach().cpu().double().flatten(1) - weight
            trial.add(RankChoice(call.name, rank), change)
        spatial = torch.arange(module.weight[0, 0].numel())
        for choice, inputs in self._narrowed(layer):
            columns = (inputs.unsqueeze(1) * len(spatial) + spatial).flatten()
            trial.add(choice, _without(regression, weight, columns) - weight)
        return trial

    def _of_shortcut(self, module: ChannelMap, call: LayerCall, layer: Layer) -> Trial:
        trial, index = Trial(call.output.mean((0, 2, 3))), module.index.cpu()
        for choice, inputs in self._narrowed(layer):
            gone = (index >= 0) & ~torch.isin(index, inputs)
            trial.add(choice, -gone.float())
        return trial

    def _narrowed(self, layer: Layer) -> Iterator[tuple[RateChoice, Tensor]]:
        """Yield the rate choices that narrow what the layer reads, and the input channels that stay."""
        for choice, groups in self.kept.items():
            inputs = columns_of(layer, self.network.plan.widths, groups)
            if inputs is not None:
                yield choice, inputs


def _without(regression: LeastSquares, weight: Tensor, columns: Tensor) -> Tensor:
    """Return the best weights (O, D) that are zero outside of these columns."""
    part = regression.among(columns, weight[:, columns])
    weights = torch.zeros_like(weight)
    weights[:, columns] = part.solution()
    return weights
