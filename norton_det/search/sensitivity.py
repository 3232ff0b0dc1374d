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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.linear_map import unfold
from norton_det.channels.narrow import ChannelMap
from norton_det.errors import UsageError
from norton_det.models.tasks import Images, as_inputs
from norton_det.search.candidates import RateChoice, Trial, trials
from norton_det.spec import Rank
from norton_det.structure.network import Network

_CHUNK = 32  # images in a backward pass


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared change of the output, as a fraction of its variance, when nothing else changes.

    Attributes:
        ranks: layer -> rank -> change. Ranks that cost no less than the dense layer are left out.
        rates: number in the architecture's order of rates -> level -> change; rates without effect are left out.
    """

    ranks: Mapping[str, Mapping[Rank, float]]
    rates: Mapping[int, Mapping[int, float]]


def measure(
    network: Network,
    images: Images,
    *,
    decomposition: str = "cp",
    criterion: str = "pabs",
    seed: int = 0,
) -> Sensitivity:
    """Measure a dense network, in single precision whatever its dtype.

    Memory is that of one forward pass of all images, and of all the weights that are tried.

    Args:
        network: it stays as it is.
        images: without labels, as the network takes them; one or two hundred.
        decomposition: registered name.
        criterion: registered name: which channels stay.
        seed: of the decompositions' starts, of the spatial positions that are drawn and of the directions.

    Raises:
        UsageError: no image, an unknown name, or a network that is compressed already.
    """
    if not len(images):
        raise UsageError("there is no image to measure on; expected at least 1")
    if network.spec.decompositions or network.spec.widths:
        raise UsageError(f"this {network.architecture.name} is compressed already; expected a dense network")
    dense = replace(network, module=copy.deepcopy(network.module).float().eval().requires_grad_(False))
    images = as_inputs(images, dense.module)
    candidates = trials(dense, images, decomposition=decomposition, criterion=criterion, seed=seed)
    changes = _changes(dense, candidates, images, seed)
    ranks: dict[str, dict[Rank, float]] = defaultdict(dict)
    rates: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for name, trial in candidates.items():
        for choice, change in zip(trial.choices, changes[name].tolist(), strict=True):
            if isinstance(choice, RateChoice):
                rates[choice.rate][choice.level] += change
            elif choice.rank is not None:
                ranks[choice.layer][choice.rank] = change
    return Sensitivity(dict(ranks), {number: dict(levels) for number, levels in rates.items()})


def _changes(network: Network, candidates: Mapping[str, Trial], images: Images, seed: int) -> dict[str, Tensor]:
    """Return for each layer the change of the output with each choice, (K,)."""
    net = network.module
    device = next(net.parameters()).device
    deltas = {name: torch.stack(trial.deltas).to(device) for name, trial in candidates.items()}
    sums = {name: torch.zeros(len(trial.choices), dtype=torch.float64) for name, trial in candidates.items()}

    def after(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        def backward(gradient: Tensor) -> None:
            features = _by_weights(module, x, y, gradient, candidates[name].mean.to(device))
            sums[name] += (features @ deltas[name].mT).square().sum(0).cpu().double()

        y.register_hook(backward)

    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda module, args, y, name=name: after(name, module, args[0].detach(), y)
        )
        for name in candidates
    ]
    generator = torch.Generator().manual_seed(seed)
    power = 0.0
    try:
        for chunk in _chunks(images):
            with torch.enable_grad():
                outputs = network.architecture.task.features_of(net, chunk)
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


def _chunks(images: Images) -> Iterator[Images]:
    """Yield images whose gradient is asked for, so that there is one by every layer's output."""
    for start in tqdm(range(0, len(images), _CHUNK), desc="gradients", unit="batch", disable=None, leave=False):
        part = images[start : start + _CHUNK]
        if isinstance(part, Tensor):
            yield part.detach().requires_grad_()
        else:
            yield [image.detach().requires_grad_() for image in part]
