"""What is tried of each layer: every rank, and every width of what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from norton_det.calibration.layerwise import Images
from norton_det.calibration.lockstep import Seen, observed
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import ChannelMap, positions
from norton_det.channels.plan import Layer
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.linalg.least_squares import Regression
from norton_det.models import ARCHITECTURES
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.spec import Rank, Spec
from norton_det.structure.settings import chosen_layers, widths_at

LEVELS = 16
"""Rates are multiples of a 16th."""


_RIDGE = 1e-3  # of the mean diagonal of the inputs' second moment


_SWEEPS = 3  # of a fit: it is compared, not kept


Choice = tuple[str, Any]
"""("rank", rank), or ("rate", (number of the rate, its level))."""


@dataclass
class _Trial:
    """What is tried of one layer.

    Attributes:
        mean: of the unfolded inputs, (D,); of a shortcut's outputs, (C,).
        choices: K of them.
        deltas: by how much the weights change, each flat.
    """

    mean: Tensor
    choices: list[Choice] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)

    def add(self, choice: Choice, delta: Tensor) -> None:
        self.choices.append(choice)
        self.deltas.append(delta.flatten().float())


def _trials(net: nn.Module, spec: Spec, images: Images, criterion: str, seed: int) -> dict[str, _Trial]:
    """Pass the images forward, and fit every layer to its output with each rank and each width of what it reads."""
    plan = ARCHITECTURES[spec.arch].plan
    options = _options(net, spec)
    kept = _kept_at_levels(net, spec, options, criterion, seed)
    generator = torch.Generator().manual_seed(seed)
    layers = {layer.name: layer for layer in plan.layers}
    read = {group for (number, level) in kept for group in kept[number, level]}
    types = (nn.Conv2d, nn.Linear, ChannelMap)
    names = [
        name
        for name, layer in layers.items()
        if isinstance(net.get_submodule(name), types) and (name in options or not read.isdisjoint(layer.reads))
    ]
    trials: dict[str, _Trial] = {}
    with (
        observed(net, names, lambda model: _outputs(model, images)) as passing,
        tqdm(total=len(names), desc="measure", unit="layer", disable=None, leave=False) as bar,
    ):
        for seen in passing:
            trial = _fits(net, seen, layers[seen.name], options.get(seen.name, []), kept, spec, generator, seed)
            if trial.choices:
                trials[seen.name] = trial
            bar.update()
    return trials


def _options(net: nn.Module, spec: Spec) -> dict[str, list[Rank]]:
    """Return the ranks to try of each layer: those with fewer weights than the dense layer has."""
    block = DECOMPOSITIONS[spec.decomposition]
    options = {}
    for name in chosen_layers(net, spec, 1)[0]:
        conv: Any = net.get_submodule(name)
        kernel = conv.kernel_size
        options[name] = [
            rank
            for rank in block.choices(conv)
            if block.cost(conv.in_channels, conv.out_channels, kernel, (1, 1), (1, 1), rank)[1] < conv.weight.numel()
        ]
    return options


def _kept_at_levels(
    net: nn.Module, spec: Spec, options: Mapping[str, Sequence[Rank]], criterion: str, seed: int
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Return (number of a rate, level) -> group -> channels that stay, where that is fewer than all."""
    architecture = ARCHITECTURES[spec.arch]
    block = DECOMPOSITIONS[spec.decomposition]
    blocks: dict[str, nn.Module] = {}
    if CRITERIA[criterion].needs_factors:  # those of a rank in the middle stand for all
        bar = tqdm(options.items(), desc="decompose", unit="layer", disable=None, leave=False)
        for name, ranks in bar:
            if ranks:
                conv: Any = net.get_submodule(name)
                blocks[name] = block.from_conv(conv, ranks[len(ranks) // 2], seed=seed)
    kept: dict[tuple[int, int], dict[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    for number, (_, groups) in enumerate(architecture.rate_order):
        for level in range(1, LEVELS):
            rates = np.zeros(len(architecture.rate_order))
            rates[number] = level / LEVELS
            widths = widths_at(spec, rates)
            found = {}
            for group in groups:
                width = int(widths[group])
                if 0 < width < architecture.plan.widths[group]:
                    names = architecture.plan.writers(group)
                    writers = [blocks.get(name) or net.get_submodule(name) for name in names]
                    found[group] = select_channels(writers, width, criterion, generator)[0]
            if found:
                kept[number, level] = found
    return kept


def _fits(
    net: nn.Module,
    seen: Seen,
    layer: Layer,
    ranks: Sequence[Rank],
    kept: Mapping[tuple[int, int], Mapping[str, Tensor]],
    spec: Spec,
    generator: torch.Generator,
    seed: int,
) -> _Trial:
    module: Any = net.get_submodule(seen.name)
    widths = ARCHITECTURES[spec.arch].plan.widths
    narrowed = [
        (key, inputs) for key, groups in kept.items() if (inputs := positions(layer.reads, widths, groups)) is not None
    ]
    if isinstance(module, ChannelMap):
        trial = _Trial(seen.output.mean((0, 2, 3)))
        for key, inputs in narrowed:
            gone = (module.index >= 0) & ~torch.isin(module.index.cpu(), inputs)
            trial.add(("rate", key), -gone.float())
        return trial
    moments = Moments(module, generator)
    moments.add(seen.inputs, seen.output)
    weight = module.weight.detach().cpu().double().flatten(1)
    # The weights explain the output exactly, so that there is nothing to tell by which ridge does best.
    regression = replace(moments.regression(weight), ridge=_RIDGE)
    trial = _Trial(moments.means()[0].float())
    for rank in ranks:
        block = DECOMPOSITIONS[spec.decomposition].from_conv(module, rank, seed=seed)
        block.refit(regression, seed=seed, sweeps=_SWEEPS)
        trial.add(("rank", rank), block.to_dense().weight.detach().cpu().double().flatten(1) - weight)
    places = torch.arange(module.weight[0, 0].numel())
    for key, inputs in narrowed:
        columns = (inputs.unsqueeze(1) * len(places) + places).flatten()
        trial.add(("rate", key), _without(regression, weight, columns) - weight)
    return trial


def _without(regression: Regression, weight: Tensor, columns: Tensor) -> Tensor:
    """Return the best weights (O, D) that are zero outside of these columns."""
    part = replace(
        regression,
        prior=weight[:, columns],
        second=regression.second[columns][:, columns],
        cross=regression.cross[:, columns],
    )
    found = torch.zeros_like(weight)
    found[:, columns] = part.solution()
    return found


def _outputs(net: Any, images: Images) -> list[Tensor]:
    """Return what the network makes of images: the logits, or a detector's feature maps."""
    if isinstance(net, GeneralizedRCNN):
        batch, _ = net.transform(list(images))
        return list(net.backbone(batch.tensors).values())
    return [net(images)]
