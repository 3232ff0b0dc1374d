"""Whether a device is there."""

import torch

from norton_det.errors import UsageError


def check_device(device: torch.device | str) -> None:
    """Check that tensors can be put on a device.

    Raises:
        UsageError: there is no such device.

    Example:
        >>> check_device("cpu")
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        expected = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device {device}: not available here; expected {expected}") from None
