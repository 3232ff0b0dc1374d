"""Several processes: each one works on its part of every batch, and they agree where they have to.

Started by ``torchrun``; in one process everything here is the identity. An exception is left alone: the process ends
with it, and ``torchrun`` ends the others.
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
    """Join the other processes if ``torchrun`` started this one, and yield this one's device.

    Args:
        device: "cuda" (NCCL; one device a process) or "cpu" (gloo).
        dist_url: how the processes find each other, as in ``torch.distributed.init_process_group``.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield torch.device(device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(own)
    count, number = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", init_method=dist_url, world_size=count, rank=number
    )
    if number > 0:
        logging.getLogger("norton_det").setLevel(logging.WARNING)  # progress is told once
    yield own
    dist.destroy_process_group()  # not after an exception: it would wait for the others


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Tell whether this process is the one that writes files and tells progress."""
    return rank() == 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of the processes' ``values``, of the same shape; the argument is left as it is."""
    if _joined():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """Return the values of all processes in their order; anything that can be pickled."""
    if not _joined():
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def made_once(make: Callable[[], T]) -> T:
    """Return what the first process makes; the others wait for it."""
    values = [make() if is_main() else None]
    if _joined():
        dist.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell whether ``flag`` is set in any process."""
    return bool(sum_over_processes(torch.tensor(int(flag), device=device)).item())


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model whose gradients are the mean over the processes; in one process the model itself."""
    if not _joined():
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers: batch-norm statistics differ, and are evaluated and saved as one."""
    if _joined():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
