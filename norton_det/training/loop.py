"""The training loop. It is the same for every :class:`Task`, which says what a network is trained for."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from norton_det.errors import NonFiniteLossError
from norton_det.runtime.distributed import gather, rank, sum_over_processes
from norton_det.runtime.progress import ProgressLog
from norton_det.runtime.seeds import derive_seed
from norton_det.training.optim import warm_up
from norton_det.training.state import TrainingState


class SizedBatches(Protocol):
    """An iterable of batches with a length."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


class Task(Protocol):
    """What a network is trained for: batches, losses and metrics."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""

    @property
    def best(self) -> str:
        """The metric of :meth:`evaluate` that selects the best epoch; higher is better."""

    def training(self, epoch: int, start: int, /) -> SizedBatches:
        """Return the batches of an epoch, beginning with number ``start``."""

    def losses(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return the terms of the loss: scalars by name, with the same names for every batch."""

    def describe(self, batch: Any) -> str:
        """Return a description of the images of a batch, or an empty string."""

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        """Return metrics by name, the same in all processes; None for a metric without ground truth."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of the training loop; optimizer and schedule are in the :class:`TrainingState`.

    Attributes:
        accumulate: number of batches whose mean gradient makes one update.
        clip_grad_norm: limit on the norm of the gradient; None: no limit.
        amp: use mixed precision: float16 on a GPU, bfloat16 on the CPU.
        ema_steps: number of updates of the network for one of its moving average.
        ema_warmup_epochs: number of first epochs in which the average is a copy of the network.
        warm_up: in the first epoch, raise the learning rate linearly from 0.1 %, as in torchvision's detection script.
        schedule_by: "epoch" or "iteration" (update): when the schedule changes the learning rate.
        seed: seed of everything that is random in the network and in the mixing of images.
        print_freq: number of iterations between log lines.
        log_every: number of iterations between lines of ``metrics.jsonl``.
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
    log_every: int = 10


def train_one_epoch(
    model: nn.Module,
    state: TrainingState,
    batches: SizedBatches,
    task: Task,
    options: TrainOptions,
    stop: Callable[[], bool] = lambda: False,
    *,
    on_line: Callable[[dict[str, Any]], None] = lambda line: None,
    later: Callable[[float], float] | None = None,
) -> bool:
    """Train on the remaining batches of the current epoch of ``state``.

    Random numbers depend on the seed, the epoch, the batch and the rank alone, so a run that is resumed continues
    exactly.

    Args:
        model: the network of ``state``, or its ``DistributedDataParallel``.
        state: the state; ``step`` and ``loss`` advance with each batch.
        batches: the batches from ``state.step`` on.
        task: the task, which computes the losses.
        options: the options.
        stop: called for each batch; if it returns True in any process, training stops after the next update.
        on_line: called with the means of every ``log_every`` iterations of an epoch and of its last ones: the learning
            rate, the loss and its terms, and the seconds of an iteration.
        later: seconds that the run takes after this epoch, of the seconds of an iteration; it is shown in the log.

    Returns:
        Whether the epoch is complete.

    Raises:
        NonFiniteLossError: the loss is infinite or NaN in some process. It is raised in every process, before the
            update: the weights are those before the batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import norton_det as nd
        >>> from norton_det.training import Classification, TrainingState, TrainOptions, train_one_epoch
        >>> from norton_det.training.optim import make_optimizer, make_schedule
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=0)
        >>> schedule = make_schedule(optimizer, "steplr", epochs=1)
        >>> state = TrainingState(net, nd.Spec("resnet56_cifar", num_classes=3), optimizer, schedule)
        >>> batches = [(torch.randn(5, 3, 2, 2), torch.randint(3, (5,))) for _ in range(4)]
        >>> task = Classification(lambda epoch, start: batches[start:], lambda: batches, torch.device("cpu"), 3)
        >>> train_one_epoch(net, state, task.training(0, 0), task, TrainOptions())
        True
        >>> state.step
        4
    """
    model.train()
    epoch, steps = state.epoch + 1, state.step + len(batches)
    log = ProgressLog(f"Epoch: [{epoch}]", options.print_freq, later)
    clock = time.perf_counter()
    state.iteration = max(state.iteration, epoch * steps + state.step)  # after --start-epoch, and in older checkpoints
    for batch in log.follow(batches, state.step):
        torch.manual_seed(derive_seed(options.seed, epoch, state.step, rank()))
        size, last = _update_of(state.step, steps, options.accumulate)
        if options.warm_up and epoch == 0:
            warm_up(state.optimizer, state.step // options.accumulate, math.ceil(steps / options.accumulate))
        with nullcontext() if last else _without_gradient_sync(model):
            with torch.autocast(task.device.type, enabled=options.amp):
                terms = task.losses(model, batch)
            means, stopping = _reduce(terms, stop())
            if not math.isfinite(sum(means.values())):
                _raise_non_finite(terms, task.describe(batch), f"batch {state.step} of epoch {epoch}")
            _scaler(state).scale(torch.stack(list(terms.values())).sum() / size).backward()
        if last:
            _update(state, options)
        now = time.perf_counter()
        _record(state, log, {"loss": sum(means.values()), **means}, now - clock)
        clock = now
        if state.step == steps or state.step % options.log_every == 0:
            on_line(_line(state))
        if last and options.schedule_by == "iteration":
            state.schedule.step()
        if last and stopping:
            break
    return state.step == steps


def _update_of(step: int, steps: int, accumulate: int) -> tuple[int, bool]:
    """Return the number of batches of the update to which a batch belongs, and whether the batch is its last."""
    first = step - step % accumulate
    size = min(accumulate, steps - first)
    return size, step == first + size - 1


def _without_gradient_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Accumulate gradients in each process; they are averaged over the processes with the last batch of an update."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _reduce(terms: Mapping[str, Tensor], stop: bool) -> tuple[dict[str, float], bool]:
    """Return the loss terms averaged over the processes, and whether any process stops.

    All processes decide by the same values, so none waits for another one that has left the loop.
    """
    values = torch.stack([term.detach().double() for term in terms.values()])
    local = torch.cat([values, values.new_tensor([1, stop])])
    *totals, count, stopping = sum_over_processes(local).tolist()
    return {name: total / count for name, total in zip(terms, totals, strict=True)}, stopping > 0


def _raise_non_finite(terms: Mapping[str, Tensor], images: str, position: str) -> NoReturn:
    """Raise NonFiniteLossError in every process.

    The message contains the loss terms and image ids of the processes whose loss is not finite.
    """
    loss = sum(term.item() for term in terms.values())
    text = ", ".join(f"{name} {term.item():g}" for name, term in terms.items()) + (images and f" on {images}")
    reports = gather((loss, text))
    not_finite = [(loss, text) for loss, text in reports if not math.isfinite(loss)] or reports
    texts = "; ".join(text for _, text in not_finite)
    advice = "a lower learning rate, a longer warm-up or a limit of the gradient's norm may help"
    raise NonFiniteLossError(f"loss is {not_finite[0][0]} in {position}: {texts}; {advice}")


def _record(state: TrainingState, log: ProgressLog, values: Mapping[str, float], seconds: float) -> None:
    state.step += 1
    state.iteration += 1
    state.loss += values["loss"]
    for name, value in {"count": 1, **values, "seconds": seconds}.items():
        state.window[name] = state.window.get(name, 0) + value
    log.lr = state.optimizer.param_groups[0]["lr"]
    log.update(**values)


def _line(state: TrainingState) -> dict[str, Any]:
    """Return the means since the last line, and begin the next one."""
    count = state.window.pop("count")
    means = {name: total / count for name, total in state.window.items()}
    state.window = {}
    lr = state.optimizer.param_groups[0]["lr"]
    return {"iteration": state.iteration - 1, "epoch": state.epoch + 1, "lr": lr, **means}


def _scaler(state: TrainingState) -> torch.amp.GradScaler:
    return state.scaler or torch.amp.GradScaler(enabled=False)


def _update(state: TrainingState, options: TrainOptions) -> None:
    """Make one update of the network, and of its moving average if it is due; set the gradient to zero."""
    scaler = _scaler(state)
    if options.clip_grad_norm is not None:
        scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_grad_norm)
    scaler.step(state.optimizer)
    scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None and state.step // options.accumulate % options.ema_steps == 0:
        if state.epoch + 1 < options.ema_warmup_epochs:
            state.ema.n_averaged.zero_()  # the next update copies the network
        state.ema.update_parameters(state.model)
