"""Training and evaluation in several processes, each of which works on its part of every batch.

``torchrun`` starts the processes. In a single process every function of this module is the identity. Exceptions are not
caught: they end the process, and ``torchrun`` ends the others.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


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
    backend = "nccl" if local.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=dist_url, world_size=size, rank=number)
    if number > 0:
        logging.getLogger("norton_det").setLevel(logging.WARNING)  # one process logs the progress
    yield local
    dist.destroy_process_group()  # not after an exception: it would wait for the other processes


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
    """Call a function in the first process alone and return its result in every process."""
    values = [compute() if is_main() else None]
    if _joined():
        dist.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is set in any process."""
    return bool(sum_over_processes(torch.tensor(int(flag), device=device)).item())


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
