"""Distillation: a network is trained to imitate the outputs of another one, its teacher, on the same inputs.

One mechanism serves all tasks. The outputs of one part of the network are compared: of a detector's backbone, or of a
whole classifier. A hook gives the inputs of this part (augmented, mixed and scaled) to the same part of the teacher,
and the distance of the two outputs is added to the losses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from norton_det.builders import make_detector
from norton_det.channels.narrow import columns_of
from norton_det.checkpoint import has_spec, load
from norton_det.decompositions import set_implementation
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.models.weights import initial_network
from norton_det.registry import Registry
from norton_det.spec import Spec
from norton_det.structure.describe import described
from norton_det.training.loop import SizedBatches, Task

FeatureDistance = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(feature maps of the network, of the teacher) by level -> scalar."""
_NORMALIZATION = ("image_mean", "image_std")  # options of a detector that determine the input of its backbone


@dataclass(frozen=True)
class Distilled:
    """A task with a teacher, a :class:`~norton_det.training.loop.Task`.

    The teacher is not part of the network: it is neither trained nor saved.

    Attributes:
        task: the task itself.
        teacher: the part of the teacher whose outputs are imitated, frozen and in evaluation mode.
        part: name of the part of the network whose outputs are compared; "": the whole network.
        distance: (output of the network, output of the teacher) -> scalar.
        teacher_weight: weight of the distance in the loss.
        task_weight: weight of the losses of the task.
    """

    task: Task
    teacher: nn.Module
    part: str
    distance: Callable[[Any, Any], Tensor]
    teacher_weight: float
    task_weight: float

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.task.device

    @property
    def best(self) -> str:
        """The metric of the task that selects the best epoch."""
        return self.task.best

    def training(self, epoch: int, start: int, /) -> SizedBatches:
        """Return the batches of the task."""
        return self.task.training(epoch, start)

    def losses(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return the losses of the task and ``loss_teacher``, weighted."""
        distances: list[Tensor] = []

        def compare(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            with torch.no_grad():
                target = self.teacher(*inputs)
            distances.append(self.distance(output, target))

        network = model.module if isinstance(model, DistributedDataParallel) else model
        handle = network.get_submodule(self.part).register_forward_hook(compare)
        try:
            losses = self.task.losses(model, batch)
        finally:
            handle.remove()
        weighted = {name: self.task_weight * loss for name, loss in losses.items()}
        return {**weighted, "loss_teacher": self.teacher_weight * torch.stack(distances).sum()}

    def describe(self, batch: Any) -> str:
        """Return the task's description of the images of a batch."""
        return self.task.describe(batch)

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return the metrics of the task."""
        return self.task.evaluate(network)


def by_logits(task: Task, teacher: nn.Module, *, weight: float, temperature: float) -> Distilled:
    """Return a task of classification with a teacher whose logits are imitated.

    Args:
        task: the task; its losses get the weight ``1 - weight``.
        teacher: a network that maps the same images to logits (N, C); it is frozen in place.
        weight: weight of :func:`logits_distance` in the loss, 0 to 1.
        temperature: temperature of :func:`logits_distance`, above 0.

    Raises:
        UsageError: a weight or temperature out of range.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"teacher_weight is {weight}; expected between 0 and 1 (the labels have the rest)")
    if not temperature > 0:
        raise UsageError(f"teacher_temperature is {temperature}; expected above 0")
    distance = partial(logits_distance, temperature=temperature)
    return Distilled(task, _freeze(teacher, task.device), "", distance, weight, 1 - weight)


def by_features(
    task: Task, teacher: nn.Module, *, weight: float, distance: str = "mse", channels: Tensor | None = None
) -> Distilled:
    """Return a task of detection with a teacher whose feature pyramid is imitated.

    Args:
        task: the task; its losses keep their weight.
        teacher: an R-CNN of torchvision. Only what computes the features is used; it is frozen in place.
        weight: weight of the distance in the loss, at least 0.
        distance: name of one of :data:`DISTANCES`.
        channels: channels of the teacher's features that the network has (:func:`feature_channels`), int64 of shape
            (C,); None: all.

    Raises:
        UsageError: a negative weight or an unknown distance.
    """
    if weight < 0:
        raise UsageError(f"teacher_weight is {weight}; expected at least 0")
    part = Detection.features
    compare = partial(_on_channels, distance=DISTANCES[distance], channels=channels)
    return Distilled(task, _freeze(teacher.get_submodule(part), task.device), part, compare, weight, 1)


def feature_channels(spec: Spec) -> Tensor | None:
    """Return which channels of a dense network's features the network of a spec has, int64 of shape (C,); None: all."""
    architecture = ARCHITECTURES[spec.arch]
    kept = {group: torch.tensor(channels) for group, channels in spec.kept.items()}
    layers = (layer for layer in architecture.plan.layers if layer.name == architecture.task.features)
    return next((columns_of(layer, architecture.plan.widths, kept) for layer in layers), None)


def _on_channels(
    features: Mapping[str, Tensor], target: Mapping[str, Tensor], *, distance: FeatureDistance, channels: Tensor | None
) -> Tensor:
    if channels is not None:
        target = {level: values[:, channels.to(values.device)] for level, values in target.items()}
    for level, values in target.items():
        ours, theirs = features[level].shape[1], values.shape[1]
        if ours != theirs:
            raise UsageError(f"teacher: its feature maps have {theirs} channels where the network's have {ours}")
    return distance(features, target)


def logits_distance(logits: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of softened probabilities, times the square of the temperature.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531. The factor makes
    the size of the gradient independent of the temperature. High temperatures compare the logits themselves.

    Args:
        logits: logits of the network, (N, C).
        target: logits of the teacher, (N, C).
        temperature: number by which both are divided.

    Returns:
        The mean over the batch, a scalar.
    """
    ours, theirs = ((values.float() / temperature).log_softmax(1) for values in (logits, target))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def feature_distance(features: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return the mean squared error of feature maps as a fraction of the teacher's mean square, averaged over levels.

    These are the hints of A. Romero et al., "FitNets", arXiv:1412.6550, with the same weight for all levels: maps of
    zeros have the distance 1.

    Args:
        features: feature maps of the network, (N, C, H, W), by level.
        target: feature maps of the teacher.

    Returns:
        A scalar.
    """
    errors = []
    for level, values in target.items():
        values = values.float()
        errors.append(F.mse_loss(features[level].float(), values) / values.square().mean().clamp(min=1e-12))
    return torch.stack(errors).mean()


def correlation_distance(features: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return 1 minus Pearson's correlation of feature maps, averaged over channels and levels.

    W. Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    arXiv:2207.02039: half the mean squared error of maps of which each channel has mean 0 and variance 1 over the batch
    and the positions. A scale or shift of a channel costs nothing.

    Args:
        features: feature maps of the network, (N, C, H, W), by level.
        target: feature maps of the teacher.

    Returns:
        A scalar.
    """
    errors = [F.mse_loss(_standardised(features[level]), _standardised(values)) / 2 for level, values in target.items()]
    return torch.stack(errors).mean()


def _standardised(maps: Tensor) -> Tensor:
    maps = maps.float()
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred / centred.square().mean((0, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()


DISTANCES: Registry[FeatureDistance] = Registry("teacher distance")
"""By name."""
DISTANCES.register("mse", feature_distance)
DISTANCES.register("pkd", correlation_distance)


def _freeze(teacher: nn.Module, device: torch.device) -> nn.Module:
    return teacher.to(device).eval().requires_grad_(False)


def load_teacher(source: str | Path, student: Spec) -> nn.Module:
    """Return the network of a file as a teacher.

    Args:
        source: a file with a spec (compressed file or checkpoint) or the name of torchvision weights; for a classifier
            also a state-dict file of the student's architecture, dense.
        student: the spec of the network that is trained.

    Raises:
        UsageError: the teacher has other classes or other inputs than the student.
        DataError: the file is missing, damaged or does not fit.
    """
    teacher, spec = _read(source, student.arch)
    if _kind(spec) != _kind(student):
        raise UsageError(f"teacher {source}: is a {spec.arch}; expected a network with the inputs of {student.arch}")
    if spec.num_classes != student.num_classes:
        raise UsageError(f"teacher {source}: has {spec.num_classes} classes; the network has {student.num_classes}")
    for name in _NORMALIZATION:
        ours, theirs = student.options.get(name, "the default"), spec.options.get(name, "the default")
        if ours != theirs:
            raise UsageError(f"teacher {source}: {name} is {theirs}; expected that of the network, {ours}")
    set_implementation(teacher, "dense")
    return teacher


def _read(source: str | Path, arch: str) -> tuple[nn.Module, Spec]:
    if has_spec(source):
        return load(source)
    architecture = ARCHITECTURES[arch]
    if architecture.task.name == Detection.name:
        return make_detector(arch, weights=source)
    teacher, _ = initial_network(architecture, source)
    return teacher, described(teacher, architecture).spec


def _kind(spec: Spec) -> tuple[str, int]:
    """Return what networks with the same inputs have in common."""
    architecture = ARCHITECTURES[spec.arch]
    return architecture.task.name, architecture.image_size
