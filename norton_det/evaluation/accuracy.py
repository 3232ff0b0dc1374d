"""Top-1 and top-5 accuracy of classifiers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_det.runtime.distributed import broadcast_buffers, sum_over_processes
from norton_det.runtime.progress import ProgressLog

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Accuracy:
    """How many of ``images`` are classified right, at once (``correct1``) and among the first five (``correct5``)."""

    images: int
    correct1: int
    correct5: int

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct1 / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.correct5 / max(self.images, 1)

    def __str__(self) -> str:
        return f"Acc@1 {self.top1:.3f} Acc@5 {self.top5:.3f} of {self.images} images"


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, *, amp: bool = False, print_freq: int = 100
) -> Accuracy:
    """Classify images and count how many come out right, over all processes.

    Args:
        model: maps images (N, 3, H, W) to logits (N, C); it is left in evaluation mode.
        batches: images and labels (N,); each process has its part of them.
        device: where the model is.
        amp: mixed precision.
        print_freq: iterations between log lines.
    """
    broadcast_buffers(model)
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for images, labels in ProgressLog("Test:", print_freq).follow(batches):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=amp):
            logits = model(images)
        right = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
        counts += torch.stack([right.new_tensor(len(labels), dtype=torch.int64), right[:, 0].sum(), right.sum()])
    return Accuracy(*(int(count) for count in sum_over_processes(counts)))
