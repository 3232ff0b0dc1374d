"""The training and evaluation loops of classifiers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from norton_det.engine.distributed import rank, share_buffers, sum_over_processes
from norton_det.engine.progress import ProgressLog
from norton_det.engine.state import TrainingState
from norton_det.engine.train import NonFiniteLossError

Batch = tuple[Tensor, Tensor]


class SizedBatches(Protocol):
    """Batches of images (N, 3, H, W) and labels (N,), and how many there are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


@dataclass(frozen=True)
class ClassifyOptions:
    """How a classifier is trained, apart from optimizer and schedule.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha: of mixup's beta distribution; 0: no mixup.
        cutmix_alpha: of cutmix's; with both, one of them is drawn for each batch.
        clip_grad_norm: bound on the norm of the gradient, or None.
        amp: mixed precision: float16 on a GPU, bfloat16 on the CPU.
        ema_steps: batches from one update of the moving average to the next.
        ema_warmup_epochs: first epochs, in which the average is a copy.
        schedule_by: the learning rate changes by "epoch" or by "iteration".
        seed: of all that is random in the network and in mixing.
        print_freq: iterations between log lines.
    """

    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    clip_grad_norm: float | None = None
    amp: bool = False
    ema_steps: int = 32
    ema_warmup_epochs: int = 0
    schedule_by: str = "epoch"
    seed: int = 0
    print_freq: int = 10


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


def train_one_epoch(
    model: nn.Module,
    state: TrainingState,
    batches: SizedBatches,
    device: torch.device,
    options: ClassifyOptions,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train for the rest of the epoch that ``state`` is in.

    What is random follows from the seed, the position and the process alone, so that a run goes on exactly.

    Args:
        model: the network of ``state``, or what trains it in several processes.
        state: what is trained; ``step`` and ``loss`` advance with each batch.
        batches: those from ``state.step`` on.
        device: where the model is.
        options: how.
        stop: asked after each batch whether to leave the rest for later.

    Returns:
        Whether the epoch is complete.

    Raises:
        NonFiniteLossError: the loss is infinite or NaN. The weights are those before the batch.
    """
    model.train()
    epoch, steps = state.epoch + 1, state.step + len(batches)
    criterion = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
    mix = _mixing(options, state.spec.num_classes)
    log = ProgressLog(f"Epoch: [{epoch}]", options.print_freq)
    for images, labels in log.follow(batches, state.step):
        torch.manual_seed(hash((options.seed, epoch, state.step, rank())))  # a hash of integers never changes
        images, labels = mix(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
        with torch.autocast(device.type, enabled=options.amp):
            loss = criterion(model(images), labels)
        value, asked = _agree(loss, stop())
        if not math.isfinite(value):
            raise NonFiniteLossError(f"loss is {value} in batch {state.step} of epoch {epoch}")
        _update(state, loss, options)
        state.step += 1
        state.loss += value
        log.update(lr=state.optimizer.param_groups[0]["lr"], loss=value)
        if options.schedule_by == "iteration":
            state.schedule.step()
        if asked:
            break
    return state.step == steps


def _agree(loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Return the mean loss and whether any process is to stop: none may be left waiting for another."""
    own = torch.tensor([loss.item(), 1, stop], dtype=torch.float64, device=loss.device)
    total, count, asked = sum_over_processes(own).tolist()
    return total / count, asked > 0


def _update(state: TrainingState, loss: Tensor, options: ClassifyOptions) -> None:
    """Take one step of the optimizer, and of the average where its turn has come."""
    scaler = state.scaler or torch.amp.GradScaler(enabled=False)
    state.optimizer.zero_grad()
    scaler.scale(loss).backward()
    if options.clip_grad_norm is not None:
        scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_grad_norm)
    scaler.step(state.optimizer)
    scaler.update()
    if state.ema is not None and state.step % options.ema_steps == 0:
        if state.epoch + 1 < options.ema_warmup_epochs:
            state.ema.n_averaged.zero_()  # the next update copies
        state.ema.update_parameters(state.model)


def _mixing(options: ClassifyOptions, num_classes: int) -> Callable[[Tensor, Tensor], Batch]:
    """Return what mixes the images of a batch: (images, labels (N,)) -> (images, target (N,) or (N, C))."""
    mixes: list[nn.Module] = []
    if options.mixup_alpha > 0:
        mixes.append(v2.MixUp(alpha=options.mixup_alpha, num_classes=num_classes))
    if options.cutmix_alpha > 0:
        mixes.append(v2.CutMix(alpha=options.cutmix_alpha, num_classes=num_classes))
    return v2.RandomChoice(mixes) if mixes else lambda images, labels: (images, labels)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a network's parameters and batch-norm statistics."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, current: Any, count: Any) -> None:
        # Counters and channel indices are copied: truncation would make other indices of them.
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


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
    share_buffers(model)
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for images, labels in ProgressLog("Test:", print_freq).follow(batches):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=amp):
            logits = model(images)
        right = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
        counts += torch.stack([right.new_tensor(len(labels), dtype=torch.int64), right[:, 0].sum(), right.sum()])
    return Accuracy(*(int(count) for count in sum_over_processes(counts)))
