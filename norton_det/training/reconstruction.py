"""Reconstruction: a compressed network is trained to reproduce the outputs of the dense one, on images without labels.

Calibration fits one layer after another by least squares. Reconstruction trains all layers together by gradient descent
on the outputs: a classifier's logits, a detector's feature pyramid. It is distillation
(:mod:`norton_det.training.distillation`) in which the labels have no weight, so the images need none.
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
from norton_det.structure.history import with_step
from norton_det.training.distillation import Distilled, by_features, by_logits, feature_channels
from norton_det.training.loop import TrainOptions, train_one_epoch
from norton_det.training.optim import make_optimizer, make_schedule
from norton_det.training.state import TrainingState

logger = logging.getLogger(__name__)

TEMPERATURE = 4.0
"""Temperature of the logits; it is high, so that unlikely classes have an influence too."""
_MAX_COMPARED = 1024  # limit on the number of images on which the distance is measured before and after


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
    """Train a compressed network to imitate the dense network from which it was made, without labels.

    The optimizer is Adam with a cosine schedule. The images are flipped and shifted at random. Batch norms keep their
    statistics. If the training does not reduce the distance from the reference, the network is returned unchanged.

    Args:
        net: the compressed network, preferably calibrated before
            (:func:`norton_det.calibration.layerwise.calibrate`). It is not changed.
        spec: the spec of ``net``.
        reference: the dense network. It is not changed.
        images: images without labels, the more the better: for classifiers (N, 3, H, W), normalised; for detectors a
            list of (3, H, W) with values from 0 to 1.
        epochs: number of epochs.
        batch_size: number of images in an update; it is reduced if there are fewer images.
        lr: initial learning rate.
        amp: use mixed precision: float16 on a GPU, bfloat16 on the CPU.
        seed: seed of order and augmentation.

    Returns:
        The trained network in evaluation mode, and its spec with the distances before and after in the provenance.

    Raises:
        UsageError: there are no images, ``epochs`` or ``batch_size`` is below 1, or ``spec`` does not describe ``net``.
        NonFiniteLossError: the loss is infinite or NaN; the learning rate is too high.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> dense = nd.vgg16_bn_cifar(num_classes=10)
        >>> net, spec = nd.prune(dense, "vgg16_bn_cifar", "[0.9]*13")
        >>> net, spec = nd.reconstruct(net, spec, dense, torch.randn(8, 3, 32, 32), epochs=1)
        >>> spec.provenance["reconstruct"]["images"]
        8
    """
    for name, count in (("images", len(images)), ("epochs", epochs), ("batch_size", batch_size)):
        if count < 1:
            raise UsageError(f"reconstruction: {name} is {count}; expected at least 1")
    refuse_deployed(net)
    kind = described(net, ARCHITECTURES[spec.arch], spec).architecture.task
    trained, teacher = copy.deepcopy(net), copy.deepcopy(reference)
    device = next(net.parameters()).device
    batching = Batching(min(batch_size, len(images)), seed)
    inputs = _UnlabelledImages(images, batching, device, kind)
    task = _imitation(inputs, teacher, feature_channels(spec))
    with torch.random.fork_rng(), in_implementation(trained, "dense"), in_implementation(teacher, "dense"):
        for network in (trained, teacher):
            network.to(memory_format=torch.channels_last)
        before = _distance(trained, task, inputs)
        _train(trained, spec, task, epochs=epochs, lr=lr, options=TrainOptions(amp=amp, seed=seed, print_freq=50))
        after = _distance(trained, task, inputs)
    logger.info("reconstruction: distance from the reference %.4g before, %.4g after", before, after)
    if not after < before:
        logger.warning("reconstruction: the distance did not decrease; the network is not changed")
        trained, after = copy.deepcopy(net), before
    step = {"images": len(images), "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    step |= {"distance": before, "-> distance": after}
    return trained.to(memory_format=torch.contiguous_format).eval(), with_step(spec, "reconstruct", step)


def _imitation(inputs: "_UnlabelledImages", teacher: nn.Module, channels: Tensor | None) -> Distilled:
    if inputs.kind.features:
        return by_features(inputs, teacher, weight=1, channels=channels)
    return by_logits(inputs, teacher, weight=1, temperature=TEMPERATURE)


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
def _distance(net: nn.Module, task: Distilled, inputs: "_UnlabelledImages") -> float:
    """Return the mean distance from the teacher in evaluation mode, on images without augmentation."""
    net.eval()
    parts = torch.arange(min(_MAX_COMPARED, len(inputs.images))).split(inputs.batching.batch_size)
    distances = [len(part) * task.losses(net, inputs.batch(part))["loss_teacher"].item() for part in parts]
    return max(sum(distances) / sum(map(len, parts)), 0.0)  # rounding can make the distance of equal outputs negative


@dataclass(frozen=True)
class _UnlabelledImages:
    """A task without losses, which runs a network on images; see :class:`norton_det.training.loop.Task`.

    Attributes:
        images: (N, 3, H, W), or a list of (3, H, W).
        batching: the division into batches.
        device: the device of the network.
        kind: the task of the network, which determines the outputs that are compared.
    """

    images: Images
    batching: Batching
    device: torch.device
    kind: NetworkTask
    best: ClassVar[str] = ""

    def training(self, epoch: int, start: int, /) -> Batches[list[Tensor]]:
        """Return the remaining batches of an epoch, with new random flips and shifts."""
        count, generator = len(self.images), self.batching.generator(epoch)
        order, chances = torch.randperm(count, generator=generator), torch.rand(count, 3, generator=generator)
        return Batches(
            lambda positions: self.batch(order[positions], chances[positions]), self.batching.training(count, start)
        )

    def batch(self, indices: Tensor, chances: Tensor | None = None) -> list[Tensor]:
        """Return the images with these indices (B,), augmented by the random numbers ``chances`` (B, 3) if given."""
        images = [self.images[index] for index in indices.tolist()]
        if chances is None:
            return images
        return [vary(image, *chance) for image, chance in zip(images, chances.tolist(), strict=True)]

    def losses(self, model: nn.Module, batch: list[Tensor]) -> Mapping[str, Tensor]:
        """Run the network, or the part of a detector that computes the features, and return no losses."""
        model.eval()  # batch norms use and keep their statistics, so the trained function is the one that is measured
        self.kind.features_of(model, [image.to(self.device) for image in batch])
        return {}

    def describe(self, batch: list[Tensor]) -> str:
        """Return an empty string: the images have no ids."""
        return ""

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return no metrics: there are no labels."""
        return {}


def vary(image: Tensor, mirror: float, down: float, right: float) -> Tensor:
    """Return an image that may be flipped horizontally and is shifted by up to an eighth of its height and width.

    The margin is filled with zeros, the mean colour of normalised images.

    Args:
        image: (C, H, W).
        mirror: flip the image if this is below 0.5.
        down: vertical shift: from 0 (an eighth of the height upwards) to 1 (an eighth downwards).
        right: horizontal shift, likewise.

    Returns:
        An image of the same shape.
    """
    height, width = image.shape[-2:]
    rows, columns = height // 8, width // 8
    top, left = round(2 * rows * (1 - down)), round(2 * columns * (1 - right))
    padded = F.pad(image, (columns, columns, rows, rows))
    shifted = padded[..., top : top + height, left : left + width]
    return shifted.flip(-1) if mirror < 0.5 else shifted
