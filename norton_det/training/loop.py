"""The training loop, one for all that is trained; what a network is trained for is a :class:`Task`."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from norton_det.runtime.distributed import gather, rank, sum_over_processes
from norton_det.runtime.progress import ProgressLog
from norton_det.training.optim import warm_up
from norton_det.training.state import TrainingState


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message gives its parts and the images of the batch."""


class SizedBatches(Protocol):
    """Batches, and how many there are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


class Task(Protocol):
    """What a network is trained for."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    @property
    def best(self) -> str:
        """Name of the figure of :meth:`evaluate` by which the best epoch is chosen; the higher the better."""

    def training(self, epoch: int, start: int, /) -> SizedBatches:
        """Return the batches of an epoch from number ``start`` on."""

    def losses(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return the parts of the loss, scalars by name, the same names for every batch."""

    def describe(self, batch: Any) -> str:
        """Return words on which images a batch has, or ""."""

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return figures by name, the same in all processes; None where there is nothing to measure."""


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained, apart from optimizer and schedule.

    Attributes:
        accumulate: batches whose mean gradient makes one update.
        clip_grad_norm: bound on the norm of the gradient, or None.
        amp: mixed precision: float16 on a GPU, bfloat16 on the CPU.
        ema_steps: updates from one of the moving average to the next.
        ema_warmup_epochs: first epochs, in which the average is a copy.
        warm_up: in the first epoch the learning rate rises from 0.1 %, as in torchvision's detection script.
        schedule_by: the learning rate changes by "epoch" or by "iteration" (update).
        seed: of all that is random in the network and in mixing.
        print_freq: iterations between log lines.
    """

    accumulate: int = 1
    clip_grad_norm: float | None = None
    amp: bool = False
    ema_steps: int = 32
    ema_warmup_epochs: int = 0
    warm_up: bool = False
    schedule_by: str = "epoch"
    seed: int = 0
    print_freq: int = 10


def train_one_epoch(
    model: nn.Module,
    state: TrainingState,
    batches: SizedBatches,
    task: Task,
    options: TrainOptions,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train for the rest of the epoch that ``state`` is in.

    What is random follows from the seed, the position and the process alone, so that a run goes on exactly.

    Args:
        model: the network of ``state``, or what trains it in several processes.
        state: what is trained; ``step`` and ``loss`` advance with each batch.
        batches: those from ``state.step`` on.
        task: what for.
        options: how.
        stop: asked in each batch whether to leave the rest for later, which is done after an update.

    Returns:
        Whether the epoch is complete.

    Raises:
        NonFiniteLossError: the loss is infinite or NaN in a process; it is raised in all. The weights are those before
            the batch.
    """
    model.train()
    epoch, steps = state.epoch + 1, state.step + len(batches)
    log = ProgressLog(f"Epoch: [{epoch}]", options.print_freq)
    for batch in log.follow(batches, state.step):
        torch.manual_seed(hash((options.seed, epoch, state.step, rank())))  # a hash of integers never changes
        size, last = _update_of(state.step, steps, options.accumulate)
        if options.warm_up and epoch == 0:
            warm_up(state.optimizer, state.step // options.accumulate, math.ceil(steps / options.accumulate))
        with nullcontext() if last else _own_gradient(model):
            with torch.autocast(task.device.type, enabled=options.amp):
                parts = task.losses(model, batch)
            means, asked = _agree(parts, stop())
            if not math.isfinite(sum(means.values())):
                _refuse(parts, task.describe(batch), f"batch {state.step} of epoch {epoch}")
            _scaler(state).scale(torch.stack(list(parts.values())).sum() / size).backward()
        if last:
            _update(state, options)
        _record(state, log, means)
        if last and options.schedule_by == "iteration":
            state.schedule.step()
        if last and asked:
            break
    return state.step == steps


def _update_of(step: int, steps: int, accumulate: int) -> tuple[int, bool]:
    """Return how many batches make the update to which a batch belongs, and whether it is the last of them."""
    first = step - step % accumulate
    size = min(accumulate, steps - first)
    return size, step == first + size - 1


def _own_gradient(model: nn.Module) -> AbstractContextManager[None]:
    """Let a process add to its own gradient: those of all are averaged with the last batch of an update."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _agree(parts: Mapping[str, Tensor], stop: bool) -> tuple[dict[str, float], bool]:
    """Return the processes' mean losses and whether any is to stop: none may be left waiting for another."""
    values = torch.stack([part.detach().double() for part in parts.values()])
    own = torch.cat([values, values.new_tensor([1, stop])])
    *totals, count, asked = sum_over_processes(own).tolist()
    return {name: total / count for name, total in zip(parts, totals, strict=True)}, asked > 0


def _refuse(parts: Mapping[str, Tensor], images: str, place: str) -> NoReturn:
    """Raise the same error in all processes, with what those say whose loss it is."""
    loss = sum(part.item() for part in parts.values())
    text = ", ".join(f"{name} {part.item():g}" for name, part in parts.items()) + (images and f" on {images}")
    told = gather((loss, text))
    wrong = [(loss, text) for loss, text in told if not math.isfinite(loss)] or told
    raise NonFiniteLossError(f"loss is {wrong[0][0]} in {place}: {'; '.join(text for _, text in wrong)}")


def _record(state: TrainingState, log: ProgressLog, means: Mapping[str, float]) -> None:
    state.step += 1
    state.loss += sum(means.values())
    log.lr = state.optimizer.param_groups[0]["lr"]
    log.update(**{"loss": sum(means.values()), **means})


def _scaler(state: TrainingState) -> torch.amp.GradScaler:
    return state.scaler or torch.amp.GradScaler(enabled=False)


def _update(state: TrainingState, options: TrainOptions) -> None:
    """Take one step of the optimizer, and of the average where its turn has come; the gradient is used up."""
    scaler = _scaler(state)
    if options.clip_grad_norm is not None:
        scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_grad_norm)
    scaler.step(state.optimizer)
    scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None and state.step // options.accumulate % options.ema_steps == 0:
        if state.epoch + 1 < options.ema_warmup_epochs:
            state.ema.n_averaged.zero_()  # the next update copies
        state.ema.update_parameters(state.model)
