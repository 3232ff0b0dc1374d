"""What is tried of each layer of a dense network: every method and rank, and every width of what it reads."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from norton_det.calibration.linear_map import check_inputs, matrix_of
from norton_det.calibration.lockstep import LayerCall, observed
from norton_det.calibration.moments import POSITIONS, Moments
from norton_det.channels.narrow import ChannelMap, columns_of
from norton_det.channels.narrow import positions as channels_of
from norton_det.channels.plan import Layer
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.input_metric import ChannelMetric
from norton_det.linalg.least_squares import LeastSquares, Regression
from norton_det.models.tasks import Detection
from norton_det.runtime.malloc import give_back_freed_memory
from norton_det.search.channel_moments import ChannelMoments
from norton_det.search.options import KeptAtLevel, Options
from norton_det.search.outputs import Outputs
from norton_det.search.probes import (
    ChannelProbe,
    OutputProbe,
    Probe,
    RankChoice,
    RateChoice,
    WeightProbe,
    is_measured,
)
from norton_det.spec import DecomposedLayer, Rank
from norton_det.structure.network import Network

Estimates = Callable[[type[Decomposition], Sequence[Rank]], Iterator[Tensor]]
"""Yields the weights (O, D) of a layer that is decomposed, for each of some ranks."""

_SAMPLES = 4096  # of the input channels of a layer, over images, spatial positions and calls
_EXACT = 1024  # inputs of a layer up to which a classifier's is fitted in the metric of all of them
_SWEEPS = 3  # of a fit: it is compared, not kept
_RIDGE = 1e-3  # of the mean diagonal of the inputs' second moment


def probes_of(
    network: Network, outputs: Outputs, options: Options, kept: KeptAtLevel, seed: int
) -> dict[str, list[Probe]]:
    """Run a network, and fit every layer to its outputs with each method and rank and each width of what it reads.

    A layer that runs several times is fitted to all its outputs together.

    Args:
        network: dense, in evaluation mode.
        outputs: what it is run for.
        options: methods and ranks to try.
        kept: channels that stay in each width to try.
        seed: of what is drawn.

    Returns:
        layer -> what is tried of it; layers of which nothing is tried, or that do not run, are left out.
    """
    net, shared = (
        network.module,
        _Shared(network, options, kept, len(outputs), torch.Generator().manual_seed(seed), seed),
    )
    read = {group for groups in kept.values() for group in groups}
    layers = {
        layer.name: layer
        for layer in network.plan.layers
        if is_measured(net.get_submodule(layer.name)) and (layer.name in options or not read.isdisjoint(layer.reads))
    }
    with observed(net, list(layers), outputs.run(slice(1))) as passing:
        calls = Counter(call.name for call in passing)
    fits = {name: _fit_of(shared, layers[name], number) for name, number in calls.items()}
    for part in tqdm([*outputs.parts()], desc="measure", unit="batch", disable=None, leave=False):
        give_back_freed_memory()
        images = range(len(outputs))[part]
        with observed(net, list(layers), outputs.run(part)) as passing:
            for call in passing:
                check_inputs(call.name, net.get_submodule(call.name), call.inputs)
                fits[call.name].add(call, images)
    probes: dict[str, list[Probe]] = {}
    for name in tqdm([*fits], desc="fit", unit="layer", disable=None, leave=False):
        probes[name] = [probe for probe in fits.pop(name).probes() if probe.choices]
        give_back_freed_memory()  # what is free lies between the weights that are tried
    return {name: tried for name, tried in probes.items() if tried}


@dataclass(frozen=True)
class _Shared:
    """What the fits of all layers share."""

    network: Network
    options: Options
    kept: KeptAtLevel
    images: int
    generator: torch.Generator
    seed: int


def _fit_of(shared: _Shared, layer: Layer, calls: int) -> "_Fit":
    module: Any = shared.network.module.get_submodule(layer.name)
    if isinstance(module, ChannelMap):
        return _ShortcutFit(shared, layer, module)
    # Within a detector all are fitted alike: it has wide layers, and their fits would take too long. Of flattened maps
    # there are fewer samples than inputs: fitted exactly to those, anything could be made up for.
    detector = shared.network.architecture.task.name == Detection.name
    exact = not detector and layer.spatial == 1 and module.weight[0].numel() <= _EXACT
    return (_ExactFit if exact else _ChannelFit)(shared, layer, module, calls)


class _Fit(ABC):
    """The fits of one layer, to what is seen of it."""

    def __init__(self, shared: _Shared, layer: Layer, module: Any) -> None:
        self.shared, self.layer, self.module = shared, layer, module
        self.options = shared.options.get(layer.name, ())
        self.inputs = sum(shared.network.plan.widths[group] for group in layer.reads)

    @abstractmethod
    def add(self, call: LayerCall, images: range) -> None:
        """Add the inputs and outputs of a call for some of the images."""

    @abstractmethod
    def probes(self) -> list[Probe]:
        """Return what is tried, once all calls were seen."""

    def narrowed(self) -> Iterator[tuple[RateChoice, Mapping[str, Tensor]]]:
        """Yield the rate choices that narrow what the layer reads, and the channels of these groups that stay."""
        for choice, groups in self.shared.kept.items():
            if not groups.keys().isdisjoint(self.layer.reads):
                yield choice, groups

    def add_estimates(self, probe: Probe, estimates: Estimates) -> None:
        """Add the ranks of the methods that do not project the outputs, with the weights that ``estimates`` yields."""
        weight = matrix_of(self.module)
        for method in dict.fromkeys(option.method for option in self.options):
            block = DECOMPOSITIONS[method]
            if not block.projects_outputs:
                tried = [option for option in self.options if option.method == method]
                for option, estimate in zip(tried, estimates(block, [option.rank for option in tried]), strict=True):
                    probe.add(RankChoice(self.layer.name, option), estimate - weight)

    @property
    def projected(self) -> list[DecomposedLayer]:
        """The options by methods that project the outputs."""
        return [option for option in self.options if DECOMPOSITIONS[option.method].projects_outputs]

    def projections(self, mean: Tensor, directions: Tensor) -> Probe:
        """Return a probe of projections on the leading ones of these directions of the outputs, (O, K)."""
        probe = OutputProbe(mean, directions)
        for option in self.projected:
            assert isinstance(option.rank, int)
            probe.add(RankChoice(self.layer.name, option), -(torch.arange(directions.shape[1]) >= option.rank).float())
        return probe


class _ShortcutFit(_Fit):
    def __init__(self, shared: _Shared, layer: Layer, module: Any) -> None:
        super().__init__(shared, layer, module)
        self.sum, self.images = torch.zeros(()), 0

    def add(self, call: LayerCall, images: range) -> None:
        self.sum = self.sum.to(call.output) + len(images) * call.output.mean((0, 2, 3))
        self.images += len(images)

    def probes(self) -> list[Probe]:
        probe, index = OutputProbe(self.sum / self.images), self.module.index.cpu()
        for choice, groups in self.narrowed():
            inputs = columns_of(self.layer, self.shared.network.plan.widths, groups)
            assert inputs is not None
            probe.add(choice, -((index >= 0) & ~torch.isin(index, inputs)).float())
        return [probe]


class _ChannelFit(_Fit):
    """Fits in the metric of a layer's input channels, in which all spatial positions are alike."""

    def __init__(self, shared: _Shared, layer: Layer, module: Any, calls: int) -> None:
        super().__init__(shared, layer, module)
        self.samples, self.moments = _SAMPLES // calls, ChannelMoments(layer.spatial)  # samples of all images
        self.pointwise = layer.spatial == 1 and matrix_of(module).shape[1] == self.inputs

    def add(self, call: LayerCall, images: range) -> None:
        samples = self.samples * len(images) // self.shared.images
        x, y = (_drawn(part, samples, self.shared.generator) for part in (call.inputs, call.output))
        self.moments.add(x, y if self.projected and not self.pointwise else y[:0])

    def probes(self) -> list[Probe]:
        weight, mean, channels = matrix_of(self.module), self.moments.mean_x, self.moments.channels()
        regression = Regression(torch.eye(len(channels)).double(), channels, channels, channels.diagonal(), _RIDGE)
        metric = ChannelMetric(regression.metric)
        if self.layer.spatial > 1:
            probe: Probe = ChannelProbe(mean)
            self._add_mixtures(probe, regression, lambda mixture: mixture)
        else:
            by_channel, seed = weight.view(len(weight), len(channels), -1), self.shared.seed
            probe = WeightProbe(mean[:, 0].repeat_interleave(by_channel.shape[2]))
            self.add_estimates(probe, lambda block, ranks: block.estimates(self.module, metric, ranks, seed=seed))
            self._add_mixtures(probe, regression, partial(torch.einsum, "oip,ij->ojp", by_channel))
        if not self.projected:
            return [probe]
        if not self.pointwise:
            return [probe, self.projections(self.moments.mean_y, _directions(self.moments.outputs()))]
        bias = 0.0 if self.module.bias is None else self.module.bias.detach().cpu().double()
        return [probe, self.projections(weight @ mean[:, 0] + bias, _output_directions(metric.mix_channels(weight)))]

    def _add_mixtures(self, probe: Probe, regression: Regression, change: Callable[[Tensor], Tensor]) -> None:
        """Add the widths: each channel that is gone is made up for by a mixture of those that stay."""
        for choice, groups in self.narrowed():
            inputs = channels_of(self.layer.reads, self.shared.network.plan.widths, groups)
            assert inputs is not None
            probe.add(choice, change(_without(regression, inputs) - regression.prior))


class _ExactFit(_Fit):
    """Fits to the outputs, in the metric of all inputs of a layer."""

    def __init__(self, shared: _Shared, layer: Layer, module: Any, calls: int) -> None:
        super().__init__(shared, layer, module)
        self.moments = Moments(module, shared.seed)

    def add(self, call: LayerCall, images: range) -> None:
        self.moments.add(call.inputs, call.output, images)

    def probes(self) -> list[Probe]:
        weight = matrix_of(self.module)
        # The weights explain the output exactly, so that there is nothing to tell by which ridge does best.
        regression = self.moments.regression(weight, None).with_ridge(_RIDGE)
        mean_x, mean_y = self.moments.means()
        probe = WeightProbe(mean_x)
        self.add_estimates(probe, partial(self._refitted, regression))
        for choice, groups in self.narrowed():
            inputs = channels_of(self.layer.reads, self.shared.network.plan.widths, groups)
            assert inputs is not None
            spatial = torch.arange(weight.shape[1] // self.inputs)
            columns = (inputs.unsqueeze(1) * len(spatial) + spatial).flatten()
            probe.add(choice, _without(regression, columns) - weight)
        if not self.projected:
            return [probe]
        return [probe, self.projections(mean_y, _directions(regression.predicted(weight)))]

    def _refitted(
        self, regression: LeastSquares, block: type[Decomposition], ranks: Sequence[Rank]
    ) -> Iterator[Tensor]:
        for rank in ranks:
            fitted = block.from_layer(self.module, rank, seed=self.shared.seed)
            fitted.refit(regression, seed=self.shared.seed, sweeps=_SWEEPS)
            yield matrix_of(fitted)


def _directions(second: Tensor) -> Tensor:
    """Return the eigenvectors of a second moment as columns, the leading one first."""
    vectors: Tensor = torch.linalg.eigh(second).eigenvectors
    return vectors.flip(1)


def _output_directions(mixed: Tensor) -> Tensor:
    """Return the leading directions of the outputs of filters (O, I, 1) whose inputs are uncorrelated."""
    root = mixed[:, :, 0]
    if root.shape[1] >= len(root):
        return _directions(root @ root.mT)
    right = _directions(root.mT @ root)  # the smaller of two matrices with the same eigenvalues
    columns = root @ right
    directions: Tensor = columns / columns.norm(dim=0).clamp(min=1e-12 * columns.norm().item() + 1e-300)
    return directions


def _without(regression: LeastSquares, columns: Tensor) -> Tensor:
    """Return the best weights (O, D) that are zero outside of these columns."""
    weights = torch.zeros_like(regression.prior)
    weights[:, columns] = regression.among(columns, regression.prior[:, columns]).solution()
    return weights


def _drawn(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return some spatial positions of (N, C, H, W) as rows (M, C), or the rows of (N, C) as they are."""
    if x.dim() == 2:
        return x
    each = min(POSITIONS, max(1, count // len(x)))
    drawn = torch.randperm(x[0, 0].numel(), generator=generator)[:each].to(x.device)
    return x.flatten(2)[:, :, drawn].movedim(1, 2).flatten(0, 1)
