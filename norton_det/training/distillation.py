"""Distillation: a network that is trained is held to what another one, its teacher, makes of the same input.

One mechanism serves all tasks. While the network trains, its part called ``place`` (a detector's backbone, or the whole
of a classifier) is watched; the teacher's part of the same name gets the very input that this one got, augmented,
mixed and scaled as it is, and the distance of the two outputs joins the losses.
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
from norton_det.checkpoint import has_spec, load
from norton_det.decompositions import set_implementation
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.models.weights import initial_network
from norton_det.spec import Spec
from norton_det.structure.describe import described
from norton_det.training.loop import SizedBatches, Task

_INPUTS = ("image_mean", "image_std")  # a detector's options that say what its backbone is given


@dataclass(frozen=True)
class Distilled:
    """A task, and a teacher to imitate in it; see :class:`norton_det.training.loop.Task`.

    The teacher is no part of the network: it is neither trained nor saved.

    Attributes:
        task: what the network is trained for.
        teacher: what stands for ``place`` in the teacher, frozen and in evaluation mode.
        place: name of the part whose outputs are compared; "": the network itself.
        distance: (the network's output, the teacher's) -> scalar.
        weight: of the distance in the loss.
        labels: weight of the task's own losses.
    """

    task: Task
    teacher: nn.Module
    place: str
    distance: Callable[[Any, Any], Tensor]
    weight: float
    labels: float

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.task.device

    @property
    def best(self) -> str:
        """The task's."""
        return self.task.best

    def training(self, epoch: int, start: int, /) -> SizedBatches:
        """Return the task's batches."""
        return self.task.training(epoch, start)

    def losses(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return the task's losses and ``loss_teacher``, weighted."""
        distances: list[Tensor] = []

        def compare(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            with torch.no_grad():
                wanted = self.teacher(*inputs)
            distances.append(self.distance(output, wanted))

        network = model.module if isinstance(model, DistributedDataParallel) else model
        handle = network.get_submodule(self.place).register_forward_hook(compare)
        try:
            parts = self.task.losses(model, batch)
        finally:
            handle.remove()
        own = {name: self.labels * part for name, part in parts.items()}
        return {**own, "loss_teacher": self.weight * torch.stack(distances).sum()}

    def describe(self, batch: Any) -> str:
        """Return the task's words."""
        return self.task.describe(batch)

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return the task's figures."""
        return self.task.evaluate(network)


def by_logits(task: Task, teacher: nn.Module, *, weight: float, temperature: float) -> Distilled:
    """Let a classifier imitate a teacher's logits; the labels have the rest of the weight, ``1 - weight``.

    Args:
        task: of classifying.
        teacher: maps the same images to logits (N, C); it is frozen.
        weight: between 0 and 1.
        temperature: above 0; see :func:`logits_distance`.

    Raises:
        UsageError: a weight or temperature outside its range.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"teacher_weight is {weight}; expected between 0 and 1: the labels have the rest")
    if not temperature > 0:
        raise UsageError(f"teacher_temperature is {temperature}; expected above 0")
    distance = partial(logits_distance, temperature=temperature)
    return Distilled(task, _frozen(teacher, task.device), "", distance, weight, 1 - weight)


def by_features(task: Task, teacher: nn.Module, *, weight: float) -> Distilled:
    """Let an R-CNN imitate a teacher's feature pyramid, besides its own losses.

    Args:
        task: of detecting.
        teacher: an R-CNN of torchvision; its backbone is frozen, the rest is not looked at.
        weight: of :func:`feature_distance`, at least 0.

    Raises:
        UsageError: a negative weight.
    """
    if weight < 0:
        raise UsageError(f"teacher_weight is {weight}; expected at least 0")
    place = "backbone"
    return Distilled(task, _frozen(teacher.get_submodule(place), task.device), place, feature_distance, weight, 1)


def logits_distance(found: Tensor, wanted: Tensor, *, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of softened probabilities, times the temperature squared.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531. The factor keeps
    the gradient's size whatever the temperature; high ones compare the logits themselves.

    Args:
        found: logits (N, C) of the network.
        wanted: those of its teacher.
        temperature: by which both are divided.
    """
    ours, theirs = ((logits.float() / temperature).log_softmax(1) for logits in (found, wanted))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def feature_distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return the squared error of feature maps as a share of the teacher's mean square, the mean over the levels.

    The hints of A. Romero et al., "FitNets", arXiv:1412.6550, where all levels count alike: 1 is what zeros would get.

    Args:
        found: maps (N, C, H, W) of the network, by level.
        wanted: those of its teacher.
    """
    errors = []
    for level, target in wanted.items():
        target = target.float()
        errors.append(F.mse_loss(found[level].float(), target) / target.square().mean().clamp(min=1e-12))
    return torch.stack(errors).mean()


def _frozen(teacher: nn.Module, device: torch.device) -> nn.Module:
    return teacher.to(device).eval().requires_grad_(False)


def load_teacher(source: str | Path, student: Spec) -> nn.Module:
    """Return the network of a file as a teacher of the one that ``student`` describes.

    Args:
        source: a file with a spec (compressed file or checkpoint) or the name of torchvision's weights; of a
            classifier, a state-dict file of the student's architecture, dense, as well.
        student: the spec of what will be trained.

    Raises:
        UsageError: the teacher has other classes, or takes other images.
        DataError: the file is missing, damaged or does not fit.
    """
    teacher, spec = _read(source, student.arch)
    if _kind(spec) != _kind(student):
        raise UsageError(f"teacher {source}: is a {spec.arch}; expected one that takes the images of a {student.arch}")
    if spec.num_classes != student.num_classes:
        raise UsageError(f"teacher {source}: has {spec.num_classes} classes; the network has {student.num_classes}")
    for name in _INPUTS:
        ours, theirs = student.options.get(name, "the default"), spec.options.get(name, "the default")
        if ours != theirs:
            raise UsageError(f"teacher {source}: {name} is {theirs}; expected the network's, {ours}")
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
    """Return what tells networks apart that take different images."""
    architecture = ARCHITECTURES[spec.arch]
    return architecture.task.name, architecture.image_size
