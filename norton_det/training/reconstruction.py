"""Reconstruction: a compressed network is trained to put out what the dense one does, on images without labels.

Calibration fits one layer after another by least squares and stops there; reconstruction trains all layers together by
gradient on the outputs that matter: a classifier's logits, a detector's feature pyramid. It is distillation
(:mod:`norton_det.training.distillation`) where the labels have no weight, so the images need none.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.data.batching import Batches, Batching
from norton_det.decompositions import in_implementation
from norton_det.deployment.record import refuse_deployed
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Images
from norton_det.models.tasks import Task as NetworkTask
from norton_det.spec import Spec
from norton_det.structure.describe import described
from norton_det.training.distillation import Distilled, by_features, by_logits
from norton_det.training.loop import TrainOptions, train_one_epoch
from norton_det.training.optim import make_optimizer, make_schedule
from norton_det.training.state import TrainingState

logger = logging.getLogger(__name__)

TEMPERATURE = 4.0
"""Of the logits: so high that the unlikely classes count as well."""
_COMPARED = 1024  # images on which the networks are compared before and after


def reconstruct(
    net: nn.Module,
    spec: Spec,
    reference: nn.Module,
    images: Images,
    *,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 1e-3,
    amp: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, Spec]:
    """Train a compressed network to imitate the one that it was made from, without labels.

    Adam with a cosine, on images that are mirrored and shifted at random; batch norms keep their statistics. What comes
    out is nearer to the reference than ``net`` was, or it is ``net``.

    Args:
        net: the compressed network, best after :func:`norton_det.calibration.layerwise.calibrate`; it stays as it is.
        spec: what it is.
        reference: what is imitated; it stays as it is.
        images: unlabelled, as the network takes them: (N, 3, H, W), normalised, for classifiers; a list of (3, H, W)
            between 0 and 1 for detectors. The more the better.
        epochs: how often each image is seen.
        batch_size: images an update; all, where there are fewer.
        lr: learning rate at first.
        amp: mixed precision: float16 on a GPU, bfloat16 on the CPU.
        seed: of order and augmentation.

    Returns:
        The trained network, in evaluation mode, and its spec.

    Raises:
        UsageError: there is no image, ``epochs`` or ``batch_size`` is below 1, or ``net`` is not what ``spec`` says.
        NonFiniteLossError: the learning rate is too high.
    """
    for name, count in (("images", len(images)), ("epochs", epochs), ("batch_size", batch_size)):
        if count < 1:
            raise UsageError(f"reconstruction: {name} is {count}; expected at least 1")
    refuse_deployed(net)
    kind = described(net, ARCHITECTURES[spec.arch], spec).architecture.task
    trained, teacher = copy.deepcopy(net), copy.deepcopy(reference)
    device = next(net.parameters()).device
    batching = Batching(min(batch_size, len(images)), seed)
    unlabelled = _Unlabelled(images, batching, device, kind)
    task = _imitation(unlabelled, teacher)
    with torch.random.fork_rng(), in_implementation(trained, "dense"), in_implementation(teacher, "dense"):
        for network in (trained, teacher):
            network.to(memory_format=torch.channels_last)
        before = _distance(trained, task, unlabelled)
        _train(trained, spec, task, epochs=epochs, lr=lr, options=TrainOptions(amp=amp, seed=seed, print_freq=50))
        after = _distance(trained, task, unlabelled)
    logger.info("reconstruction: distance from the reference %.4g, then %.4g", before, after)
    if not after < before:
        logger.warning("reconstruction: nothing gained, the network stays as it was")
        trained, after = copy.deepcopy(net), before
    step = {"images": len(images), "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    step |= {"distance": before, "-> distance": after}
    provenance = {**spec.provenance, "reconstruct": step}
    return trained.to(memory_format=torch.contiguous_format).eval(), replace(spec, provenance=provenance)


def _imitation(unlabelled: "_Unlabelled", teacher: nn.Module) -> Distilled:
    if unlabelled.of.features:
        return by_features(unlabelled, teacher, weight=1)
    return by_logits(unlabelled, teacher, weight=1, temperature=TEMPERATURE)


def _train(net: nn.Module, spec: Spec, task: Distilled, *, epochs: int, lr: float, options: TrainOptions) -> None:
    optimizer = make_optimizer(net, "adamw", lr=lr, momentum=0, weight_decay=0)
    steps = len(task.training(0, 0))
    schedule = make_schedule(optimizer, "cosineannealinglr", epochs=epochs, per_epoch=steps)
    scaler = torch.amp.GradScaler(task.device.type, enabled=options.amp and task.device.type == "cuda")
    state = TrainingState(net, spec, optimizer, schedule, scaler)
    for epoch in range(epochs):
        train_one_epoch(net, state, task.training(epoch, 0), task, replace(options, schedule_by="iteration"))
        state.epoch, state.step, state.loss = epoch, 0, 0.0


@torch.no_grad()
def _distance(net: nn.Module, task: Distilled, unlabelled: "_Unlabelled") -> float:
    """Return the mean distance from the teacher in evaluation mode, on images as they are."""
    net.eval()
    parts = torch.arange(min(_COMPARED, len(unlabelled.images))).split(unlabelled.batching.batch_size)
    distances = [len(part) * task.losses(net, unlabelled.batch(part))["loss_teacher"].item() for part in parts]
    return max(sum(distances) / sum(map(len, parts)), 0.0)  # rounding: nothing is nearer than the same


@dataclass(frozen=True)
class _Unlabelled:
    """The task of running a network on images; it has no losses of its own. See :class:`norton_det.training.loop.Task`.

    Attributes:
        images: (N, 3, H, W), or a list of (3, H, W).
        batching: how they come in batches.
        device: where the network is.
        of: what the network does.
    """

    images: Images
    batching: Batching
    device: torch.device
    of: NetworkTask
    best: ClassVar[str] = ""

    def training(self, epoch: int, start: int, /) -> Batches[list[Tensor]]:
        """Return the rest of an epoch's batches; each image is mirrored or not, and shifted, anew."""
        count, generator = len(self.images), self.batching.generator(epoch)
        order, chances = torch.randperm(count, generator=generator), torch.rand(count, 3, generator=generator)
        return Batches(
            lambda positions: self.batch(order[positions], chances[positions]), self.batching.training(count, start)
        )

    def batch(self, numbers: Tensor, chances: Tensor | None = None) -> list[Tensor]:
        """Return the images of these numbers (B,), varied by ``chances`` (B, 3) if given."""
        found = [self.images[number] for number in numbers.tolist()]
        if chances is None:
            return found
        return [vary(image, *chance) for image, chance in zip(found, chances.tolist(), strict=True)]

    def losses(self, model: nn.Module, batch: list[Tensor]) -> Mapping[str, Tensor]:
        """Run the network, of a detector what makes the features, and return nothing."""
        model.eval()  # batch norms keep their statistics: what is trained is what is measured, whatever the batch
        self.of.features_of(model, [image.to(self.device) for image in batch])
        return {}

    def describe(self, batch: list[Tensor]) -> str:
        """Return nothing: the images have no names."""
        return ""

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return nothing: there are no labels."""
        return {}


def vary(image: Tensor, mirror: float, down: float, right: float) -> Tensor:
    """Return an image (C, H, W), mirrored left to right or not, and shifted by up to an eighth of its sides.

    What comes in is zero: the mean colour of normalised images.

    Args:
        image: what is varied.
        mirror: mirrored if below 0.5.
        down: between 0 and 1, from an eighth of the height upwards to as much downwards.
        right: the same for the width.
    """
    height, width = image.shape[-2:]
    rows, columns = height // 8, width // 8
    top, left = round(2 * rows * (1 - down)), round(2 * columns * (1 - right))
    padded = F.pad(image, (columns, columns, rows, rows))
    shifted = padded[..., top : top + height, left : left + width]
    return shifted.flip(-1) if mirror < 0.5 else shifted
