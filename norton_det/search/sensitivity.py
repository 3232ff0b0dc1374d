"""How much a network's output changes when one layer is decomposed or one channel group narrowed, without labels.

To first order the output changes by J dW x, where dW is the change of a layer's weights, x its inputs and J the
derivative of the network's output by the layer's. With e drawn from N(0, 1) for each output, the mean of
``(e^T J dW x)^2`` is the mean squared change, and ``e^T J dW x`` is the inner product of dW with a gradient by the
weights. One backward pass of a few hundred images thus judges all ranks and widths of all layers, each with the weights
that are fitted best to the layer's outputs (the Gauss-Newton form of Optimal Brain Surgeon: Hassibi and Stork, 1992;
Schraudolph, "Fast Curvature Matrix-Vector Products", 2002). What a layer changes in several calls is added up before it
is squared.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.linear_map import unfolded_outputs
from norton_det.errors import UsageError
from norton_det.models.tasks import Images
from norton_det.runtime.malloc import give_back_freed_memory
from norton_det.search.candidates import probes_of
from norton_det.search.options import kept_at_levels, options_of
from norton_det.search.outputs import Outputs
from norton_det.search.probes import Probe, RateChoice
from norton_det.spec import DecomposedLayer
from norton_det.structure.network import Network

_COLUMNS = 2**16
Probes = Mapping[str, Sequence[Probe]]


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared change of the output, as a fraction of its variance, when nothing else changes.

    Attributes:
        decompositions: layer -> method and rank -> change. Those that cost no less than the dense layer are left out.
        rates: number in the architecture's order of rates -> level -> change; rates without effect are left out.
    """

    decompositions: Mapping[str, Mapping[DecomposedLayer, float]]
    rates: Mapping[int, Mapping[int, float]]


def measure(
    network: Network,
    images: Images,
    *,
    decomposition: str | Sequence[str] = "cp",
    criterion: str = "pabs",
    seed: int = 0,
) -> Sensitivity:
    """Measure a dense network, in single precision whatever its dtype.

    Memory is that of a forward and a backward pass of a few images, and of all the weights that are tried.

    Args:
        network: it stays as it is.
        images: without labels, as the network takes them; one or two hundred.
        decomposition: registered name, or several.
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
    outputs = Outputs(dense, images, seed)
    options = options_of(dense, [decomposition] if isinstance(decomposition, str) else decomposition)
    kept = kept_at_levels(dense, options, criterion, seed)
    probes = probes_of(dense, outputs, options, kept, seed)
    changes = changes_of(dense.module, probes, outputs, seed)
    layers: dict[str, dict[DecomposedLayer, float]] = defaultdict(dict)
    rates: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for name, tried in probes.items():
        choices = [choice for probe in tried for choice in probe.choices]
        for choice, change in zip(choices, changes[name].tolist(), strict=True):
            if isinstance(choice, RateChoice):
                rates[choice.rate][choice.level] += change
            elif choice.decomposed is not None:
                layers[choice.layer][choice.decomposed] = change
    return Sensitivity(dict(layers), {number: dict(levels) for number, levels in rates.items()})


def changes_of(net: nn.Module, probes: Probes, outputs: Outputs, seed: int) -> dict[str, Tensor]:
    """Return for each layer the change of the outputs with each choice of its probes, (K,)."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for part in tqdm([*outputs.parts()], desc="gradients", unit="batch", disable=None, leave=False):
        give_back_freed_memory()
        images = _asked(outputs.images[part])
        with torch.enable_grad(), _Products(net, probes, len(images)) as products:
            kinds = outputs.of(net, part, images)
            total = torch.zeros(())
            for kind in kinds:
                # The squared change of each kind is a mean over all its numbers on all the images.
                numbers = sum(out.numel() for out in kind) * len(outputs) / len(images)
                for out in kind:
                    direction = torch.randn(out.shape, generator=generator).to(out)
                    scale = 1 / (out.detach().std().clamp(min=1e-12) * (numbers * len(kinds)) ** 0.5)
                    total = total + scale * (direction * out).sum().to(total)
            total.backward()
        for name, of_images in products.of_layers.items():
            squares = of_images.double().square().sum(0).cpu()
            sums[name] = sums[name] + squares if name in sums else squares
    return sums


class _Products:
    """Sums, over the calls of a layer, of what each of its choices changes: (N, K) for N images, by layer."""

    def __init__(self, net: nn.Module, probes: Probes, images: int) -> None:
        self.of_layers: dict[str, Tensor] = {}
        self._net, self._probes, self._images = net, probes, images

    def __enter__(self) -> "_Products":
        self._handles = [
            self._net.get_submodule(name).register_forward_hook(partial(self._after, name)) for name in self._probes
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _after(self, name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        noted = [probe.noted(layer, args[0].detach(), y) for probe in self._probes[name]]

        def backward(gradient: Tensor) -> None:
            gradient = unfolded_outputs(layer, gradient)
            tried = zip(self._probes[name], noted, strict=True)
            products = torch.cat([self._of_images(probe, layer, seen, gradient) for probe, seen in tried], 1)
            self.of_layers[name] = self.of_layers[name] + products if name in self.of_layers else products

        y.register_hook(backward)

    def _of_images(self, probe: Probe, layer: nn.Module, noted: Tensor, gradient: Tensor) -> Tensor:
        """Return (N, K); rows of a layer behind the choice of boxes are of the images in equal parts."""
        each = ceil(len(gradient) / self._images)
        features = [
            probe.features(layer, noted[start : start + each], gradient[start : start + each]).flatten()
            for start in range(0, len(gradient), each)
        ]
        products = _products(torch.stack(features), probe.deltas)
        return nn.functional.pad(products, (0, 0, 0, self._images - len(features)))


def _products(features: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """Return the inner products (N, K) of (N, F) with K times (F,), a few columns at a time: the deltas are large."""
    products = features.new_zeros(len(features), len(deltas))
    for start in range(0, features.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        products += features[:, part] @ torch.stack([delta[part] for delta in deltas]).to(features).mT
    return products


def _asked(images: Images) -> Images:
    """Return images as tensors whose gradient is asked for: there is one by every layer's output."""
    asked = [image.detach().requires_grad_() for image in images]
    return torch.stack(asked) if isinstance(images, Tensor) else asked
