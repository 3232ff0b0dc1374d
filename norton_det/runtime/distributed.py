"""Training and evaluation in several processes, each of which works on its part of every batch.

``torchrun`` starts the processes. In a single process every function of this module is the identity. Exceptions are not
caught, but for those of :func:`compute_once`, which every process raises: they end the process, and ``torchrun`` ends
the others; without it they end where they next need the one that has ended.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from norton_det.errors import DataError, TerminatedError, UsageError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_store: "Store | None" = None
"""What the processes have met by; it is open to notes as long as they run."""
_SENT = (UsageError, DataError, OSError, TerminatedError)
"""Exceptions of one process that the others raise as they are."""


class LostProcessError(RuntimeError):
    """Another process has ended, with which this one was to exchange data. Exit code: 1."""


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


@contextmanager
def processes(device: str, dist_url: str = "env://") -> Iterator[torch.device]:
    """Join the process group if ``torchrun`` started this process, and yield the device of this process.

    Args:
        device: "cuda" (backend NCCL, one device for each process) or "cpu" (backend gloo).
        dist_url: ``init_method`` of ``torch.distributed.init_process_group``.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield torch.device(device)
        return
    local = torch.device(device)
    if local.type == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(local)
    size, number = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    global _store
    _store, number, size = next(rendezvous(dist_url, number, size))
    backend = "nccl" if local.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("norton_det", _store), world_size=size, rank=number)
    if number > 0:
        logging.getLogger("norton_det").setLevel(logging.WARNING)  # one process logs the progress
    try:
        yield local
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise LostProcessError("another process of the training has ended; its own message says why") from error
    dist.destroy_process_group()  # not after an exception: it would wait for the other processes
    _store = None


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Return whether this process writes the files and logs the progress."""
    return rank() == 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum over the processes of ``values``, of the same shape. The argument is not changed."""
    if _joined():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """Return the values of all processes in the order of their ranks. A value can be any object that pickles."""
    if not _joined():
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def compute_once(compute: Callable[[], T]) -> T:
    """Call a function in the first process alone; return its result, or raise its exception, in every process.

    Example:
        >>> from norton_det.runtime.distributed import compute_once
        >>> compute_once(lambda: 1 + 1)
        2
    """
    if not _joined():
        return compute()
    outcome: list[tuple[T | None, BaseException | None]] = [(None, None)]
    if is_main():
        try:
            outcome = [(compute(), None)]
        except BaseException as error:
            outcome = [(None, error if isinstance(error, _SENT) else RuntimeError(f"{type(error).__name__}: {error}"))]
            dist.broadcast_object_list(outcome, 0)
            raise
    dist.broadcast_object_list(outcome, 0)
    value, raised = outcome[0]
    if raised is not None:
        raise raised
    return value  # type: ignore[return-value]


class Note:
    """A note that a process leaves for the others, who need not be at the same place to read it.

    Args:
        name: of the note.

    Raises:
        RuntimeError: by its methods, if the process that keeps the notes, the first one, has ended.

    Example:
        >>> from norton_det.runtime.distributed import Note
        >>> Note("signal").write("15")
        >>> Note("signal").read() is None  # this process is alone
        True
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> None:
        """Leave the note."""
        if _store is not None:
            _store.set(self.name, text)

    def read(self) -> str | None:
        """Return what some process left; None if none did."""
        there = _store is not None and _store.check([self.name])
        return _store.get(self.name).decode() if there and _store is not None else None


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model whose gradients are averaged over the processes. In a single process it is the model itself."""
    if not _joined():
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the first process's buffers to all processes.

    The statistics of batch norms differ between the processes, but one network is evaluated and saved.
    """
    if _joined():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
