"""The task of image classification."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from norton_det.evaluation.accuracy import Batch, evaluate
from norton_det.training.loop import SizedBatches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classification:
    """The task of image classification, a :class:`~norton_det.training.loop.Task`.

    Attributes:
        training: (epoch, first batch) -> the remaining batches of the epoch: images (N, 3, H, W) and labels (N,).
        evaluation: returns the batches of the evaluation.
        device: the device of the network.
        num_classes: number of classes.
        label_smoothing: fraction of the target that is distributed over all classes.
        mixup_alpha: parameter of mixup's beta distribution; 0: no mixup.
        cutmix_alpha: parameter of cutmix's beta distribution; 0: no cutmix. With both, one is drawn for each batch.
        amp: evaluate in mixed precision.
    """

    training: Callable[[int, int], SizedBatches]
    evaluation: Callable[[], SizedBatches]
    device: torch.device
    num_classes: int
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    amp: bool = False
    best: ClassVar[str] = "top1"

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch, after mixup or cutmix, as ``loss``."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        images, target = self._mix(images, labels)
        return {"loss": nn.functional.cross_entropy(model(images), target, label_smoothing=self.label_smoothing)}

    def describe(self, batch: Batch) -> str:
        """Return an empty string: the images have no ids."""
        return ""

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return the accuracies ``top1`` and ``top5`` in percent."""
        result = evaluate(network, self.evaluation(), self.device, amp=self.amp)
        logger.info("Test: %s", result)
        return {"top1": result.top1, "top5": result.top5}

    @cached_property
    def _mix(self) -> Callable[[Tensor, Tensor], Batch]:
        """The mixing of a batch: (images, labels (N,)) -> (images, target (N,) or (N, C))."""
        mixes: list[nn.Module] = []
        if self.mixup_alpha > 0:
            mixes.append(v2.MixUp(alpha=self.mixup_alpha, num_classes=self.num_classes))
        if self.cutmix_alpha > 0:
            mixes.append(v2.CutMix(alpha=self.cutmix_alpha, num_classes=self.num_classes))
        return v2.RandomChoice(mixes) if mixes else lambda images, labels: (images, labels)
