"""Which device is used: a GPU if there is one, unless the user names another."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from norton_det.errors import UsageError, shown


def default_device() -> str:
    """Return the device of a command that is not told one: "cuda" if there is a GPU, else "cpu".

    Example:
        >>> default_device() in ("cuda", "cpu")
        True
    """
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: torch.device | str) -> None:
    """Check that tensors can be put on a device.

    Raises:
        UsageError: there is no such device.

    Example:
        >>> check_device("cpu")
    """
    try:
        usable = not torch.zeros(1, device=device).is_meta  # which has shapes, and no values
    except (RuntimeError, AssertionError, ImportError):
        usable = False
    if not usable:
        expected = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device {shown(str(device))[1:-1]}: not available here; expected {expected}")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in float32 within the block; a GPU convolves with 10 bits of the mantissa (TF32) by default.

    What torch is set to (``torch.backends.*.fp32_precision``, ``torch.set_float32_matmul_precision``) is restored.

    Example:
        >>> import torch
        >>> before = torch.backends.cudnn.conv.fp32_precision
        >>> with full_precision():
        ...     torch.backends.cudnn.conv.fp32_precision
        'ieee'
        >>> torch.backends.cudnn.conv.fp32_precision == before
        True
    """
    backends: Any = torch.backends  # its stubs do not know all of it
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    settings += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    with ExitStack() as restored:
        for setting in settings:
            restored.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
            setting.fp32_precision = "ieee"
        yield


def describe_device(device: torch.device | str) -> str:
    """Return a device with its name, or the number of threads of the CPU.

    Example:
        >>> describe_device("cpu").startswith("cpu (")
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def usable_cores() -> int:
    """Return the number of processor cores that this process may use.

    Example:
        >>> usable_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
