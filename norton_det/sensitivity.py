"""How much a network's output changes when one layer is decomposed or one channel group narrowed, without labels.

To first order the output changes by J dW x, where dW is the change of a layer's weights, x its inputs and J the
derivative of the network's output by the layer's. With e drawn from N(0, 1) for each output, the mean of
``(e^T J dW x)^2`` is the mean squared change, and ``e^T J dW x`` is the inner product of dW with a gradient by the
weights. One backward pass of a few hundred images thus judges all ranks and widths of all layers, each with the weights
that are fitted best to the layer's outputs (the Gauss-Newton form of Optimal Brain Surgeon: Hassibi and Stork, 1992;
Schraudolph, "Fast Curvature Matrix-Vector Products", 2002).
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from norton_det.build import describe
from norton_det.calibration import Images
from norton_det.channels.narrow import ChannelMap, positions
from norton_det.channels.plan import Layer
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import Regression
from norton_det.lockstep import Seen, observed
from norton_det.models import ARCHITECTURES
from norton_det.moments import Moments, unfold
from norton_det.pruning import CRITERIA
from norton_det.pruning.select import select_channels
from norton_det.setting import chosen_layers, widths_at
from norton_det.spec import Rank, Spec

LEVELS = 16
"""Rates are multiples of a 16th."""
_CHUNK = 32  # images in a backward pass
_RIDGE = 1e-3  # of the mean diagonal of the inputs' second moment
_SWEEPS = 3  # of a fit: it is compared, not kept
Choice = tuple[str, Any]
"""("rank", rank), or ("rate", (number of the rate, its level))."""


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared change of the output, as a share of its variance, when nothing else changes.

    Attributes:
        ranks: layer -> rank -> change. Ranks that cost no less than the dense layer are left out.
        rates: number in the architecture's order of rates -> level -> change; rates without effect are left out.
    """

    ranks: Mapping[str, Mapping[Rank, float]]
    rates: Mapping[int, Mapping[int, float]]


def measure(
    net: nn.Module,
    arch: str,
    images: Images,
    *,
    decomposition: str = "cp",
    criterion: str = "pabs",
    seed: int = 0,
) -> Sensitivity:
    """Measure a dense network.

    Memory is that of one forward pass of all images, and of all the weights that are tried.

    Args:
        net: it stays as it is.
        arch: registered name of its architecture.
        images: unlabelled, as the network takes them; one or two hundred.
        decomposition: registered name.
        criterion: registered name: which channels stay.
        seed: of the decompositions' starts, of the places that are looked at and of the directions.

    Raises:
        UsageError: no image, an unknown name, or a network that is compressed already.
    """
    if not len(images):
        raise UsageError("there is no image to measure on; expected at least 1")
    spec = replace(describe(net, arch), decomposition=decomposition)
    if spec.ranks or spec.widths:
        raise UsageError(f"this {arch} is compressed already; expected a dense network")
    dense = copy.deepcopy(net).eval().requires_grad_(False)
    trials = _trials(dense, spec, images, criterion, seed)
    changes = _changes(dense, trials, images, seed)
    ranks: dict[str, dict[Rank, float]] = {}
    rates: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for name, trial in trials.items():
        for (kind, what), change in zip(trial.choices, changes[name].tolist(), strict=True):
            if kind == "rank":
                ranks.setdefault(name, {})[what] = change
            else:
                rates[what[0]][what[1]] += change
    return Sensitivity(ranks, {number: dict(levels) for number, levels in rates.items()})


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


def _changes(net: nn.Module, trials: Mapping[str, _Trial], images: Images, seed: int) -> dict[str, Tensor]:
    """Return for each layer the change of the output with each choice, (K,)."""
    device = next(net.parameters()).device
    deltas = {name: torch.stack(trial.deltas).to(device) for name, trial in trials.items()}
    sums = {name: torch.zeros(len(trial.choices), dtype=torch.float64) for name, trial in trials.items()}

    def after(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        def backward(gradient: Tensor) -> None:
            features = _by_weights(module, x, y, gradient, trials[name].mean.to(device))
            sums[name] += (features @ deltas[name].mT).square().sum(0).cpu().double()

        y.register_hook(backward)

    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda module, args, y, name=name: after(name, module, args[0].detach(), y)
        )
        for name in trials
    ]
    generator = torch.Generator().manual_seed(seed)
    power = 0.0
    try:
        for chunk in _chunks(images, device):
            with torch.enable_grad():
                outputs = _outputs(net, chunk)
                directions = [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
                scales = [1 / out.detach().std().clamp(min=1e-12) for out in outputs]
                total: Any = sum((s * e * out).sum() for s, e, out in zip(scales, directions, outputs, strict=True))
                total.backward()
            power += float(sum(out.numel() for out in outputs))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / power for name, total in sums.items()}


def _by_weights(module: Any, x: Tensor, y: Tensor, gradient: Tensor, mean: Tensor) -> Tensor:
    """Return each image's gradient by the weights, (N, ...), inputs taken about their mean: a shift costs nothing."""
    if isinstance(module, ChannelMap):
        return (gradient * (y.detach() - mean.view(-1, 1, 1))).sum((2, 3))
    g = gradient.flatten(2) if gradient.dim() > 2 else gradient.unsqueeze(2)
    by_weights = g @ unfold(module, x).mT - g.sum(2, keepdim=True) * mean
    return by_weights.flatten(1)


def _chunks(images: Images, device: torch.device) -> Iterator[Images]:
    """Yield images on ``device`` whose gradient is asked for, so that there is one by every layer's output."""
    for start in tqdm(range(0, len(images), _CHUNK), desc="gradients", unit="batch", disable=None, leave=False):
        part = images[start : start + _CHUNK]
        if isinstance(part, Tensor):
            yield part.to(device).requires_grad_()
        else:
            yield [image.to(device).requires_grad_() for image in part]


def _outputs(net: Any, images: Images) -> list[Tensor]:
    """Return what the network makes of images: the logits, or a detector's feature maps."""
    if isinstance(net, GeneralizedRCNN):
        batch, _ = net.transform(list(images))
        return list(net.backbone(batch.tensors).values())
    return [net(images)]
