"""How long the parts of a network take while it runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from norton_det.runtime.timing import Stopwatch


@contextmanager
def timed_parts(net: nn.Module, parts: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Stopwatch]]:
    """Time parts of a network within the block, with the accelerator's work included.

    Args:
        net: runs within the block.
        parts: part -> names of its submodules, none inside of another; those that ``net`` lacks are left out.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> with timed_parts(net, {"convolution": ["0"], "rest": ["1"], "head": ["2"]}) as watches:
        ...     _ = net(torch.rand(1, 3, 8, 8))
        >>> {name: watch.count for name, watch in watches.items()}
        {'convolution': 1, 'rest': 1}
    """
    modules = dict(net.named_modules())
    present = {part: [modules[name] for name in names if name in modules] for part, names in parts.items()}
    watches = {part: Stopwatch() for part, found in present.items() if found}
    handles: list[Any] = []
    for part, watch in watches.items():
        for module in present[part]:
            handles.append(module.register_forward_pre_hook(_starting(watch)))
            handles.append(module.register_forward_hook(_stopping(watch), always_call=True))
    try:
        yield watches
    finally:
        for handle in handles:
            handle.remove()


def _starting(watch: Stopwatch) -> Any:
    return lambda module, args: watch.__enter__()


def _stopping(watch: Stopwatch) -> Any:
    return lambda module, args, output: watch.__exit__()
