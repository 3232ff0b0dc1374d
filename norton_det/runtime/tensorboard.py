"""TensorBoard's log of a training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from norton_det.errors import UsageError


def tensorboard_log(
    folder: str | Path, first: int, images: Callable[[], Mapping[str, Tensor]] = dict
) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that writes the lines of ``metrics.jsonl`` to TensorBoard's log.

    Every step is a number of iterations. Values of iterations are written under ``iteration/``; those of an epoch, at
    its last iteration, under their own names. Values that are None are left out.

    Args:
        folder: the folder of the log.
        first: number of the first iteration; entries of an older log from this iteration on are discarded.
        images: called after each epoch: images (3, H, W), uint8, to write by name.

    Raises:
        UsageError: the package ``tensorboard`` is not installed.
    """
    writer = _writer_class()(str(folder), purge_step=first)
    step = first - 1

    def add(line: Mapping[str, Any]) -> None:
        nonlocal step
        step = line.get("iteration", step)
        prefix = "iteration/" if "iteration" in line else ""
        for name, value in line.items():
            if name not in ("epoch", "iteration") and value is not None:
                writer.add_scalar(prefix + name, value, step)
        if "iteration" not in line:
            for name, image in images().items():
                writer.add_image(name, image, step)
            writer.flush()

    return add


def check_tensorboard() -> None:
    """Check that TensorBoard's log can be written.

    Raises:
        UsageError: the package ``tensorboard`` is not installed.
    """
    _writer_class()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "tensorboard is not installed; --tensorboard needs it: pip install norton-det[tensorboard]"
        ) from None
    return SummaryWriter
