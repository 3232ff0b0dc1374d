"""Top-1 and top-5 accuracy of classifiers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_det.runtime.distributed import broadcast_buffers, sum_over_processes
from norton_det.runtime.progress import ProgressLog
from norton_det.runtime.signals import end_if_stopped, stopping

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a classifier.

    Attributes:
        images: number of images.
        correct1: number of images whose label has the highest score.
        correct5: number of images whose label is among the five highest scores.

    Example:
        >>> from norton_det.evaluation.accuracy import Accuracy
        >>> Accuracy(images=200, correct1=150, correct5=190).top1
        75.0
    """

    images: int
    correct1: int
    correct5: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct1 / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.correct5 / max(self.images, 1)

    def __str__(self) -> str:
        return f"Acc@1 {self.top1:.3f} Acc@5 {self.top5:.3f} of {self.images} images"


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, *, amp: bool = False, print_freq: int = 100
) -> Accuracy:
    """Return the accuracy of a classifier on the images of all processes.

    Args:
        model: maps images (N, 3, H, W) to logits (N, C). It is left in evaluation mode.
        batches: batches of images and labels (N,); each process has its own part.
        device: the device of the model.
        amp: use mixed precision.
        print_freq: number of iterations between log lines.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from norton_det.evaluation.accuracy import evaluate
        >>> batches = [(torch.eye(3).view(3, 3, 1, 1), torch.tensor([0, 1, 0]))]
        >>> print(evaluate(nn.Flatten(), batches, torch.device("cpu")))
        Acc@1 66.667 Acc@5 100.000 of 3 images
    """
    broadcast_buffers(model)
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for images, labels in ProgressLog("Test:", print_freq).follow(batches):
        if stopping():
            break
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=amp):
            logits = model(images)
        correct = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
        count = correct.new_tensor(len(labels), dtype=torch.int64)
        counts += torch.stack([count, correct[:, 0].sum(), correct.sum()])
    end_if_stopped()
    return Accuracy(*(int(count) for count in sum_over_processes(counts)))
