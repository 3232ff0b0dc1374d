"""Time of each kind of layer of a ResNet-50."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from norton_det.runtime.timing import Stopwatch

KINDS = {
    "stem": r"conv1|bn1|maxpool",
    "1x1 convolutions": r"layer\d\.\d\.(conv[13]|downsample\.0)",
    "3x3 convolutions or blocks": r"layer\d\.\d\.conv2",
}
"""Regular expressions for the names of the layers of each kind."""
REST = "other layers"
"""Additions, ReLU, pooling, the classifier, and batch norms that are not folded."""


def time_kinds(net: nn.Module) -> dict[str, list[float]]:
    """Add hooks to a ResNet-50 and return lists to which each run appends the seconds of each kind of layer."""
    parts: dict[str, list[float]] = {kind: [] for kind in (*KINDS, REST)}
    watches: dict[str, Stopwatch] = {}
    for name, module in net.named_modules():
        kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), None)
        if kind:
            module.register_forward_pre_hook(_enter(watches, kind))
            module.register_forward_hook(_exit(watches, kind))

    def start(*_: Any) -> None:
        watches.update({kind: Stopwatch() for kind in parts})
        watches[REST].__enter__()

    def end(*_: Any) -> None:
        watches[REST].__exit__()
        watches[REST].seconds -= sum(watches[kind].seconds for kind in KINDS)
        for kind, watch in watches.items():
            parts[kind].append(watch.seconds)

    net.register_forward_pre_hook(start)
    net.register_forward_hook(end)
    return parts


def _enter(watches: dict[str, Stopwatch], kind: str) -> Callable[..., None]:
    return lambda *_: watches[kind].__enter__()


def _exit(watches: dict[str, Stopwatch], kind: str) -> Callable[..., None]:
    return lambda *_: watches[kind].__exit__()
