"""In which order layers can be fitted, where some run several times."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.errors import UsageError


@torch.no_grad()
def schedule(net: nn.Module, names: Iterable[str], run: Callable[[nn.Module], Any]) -> dict[str, int]:
    """Return layers in an order in which they can be fitted, and how often each runs in one pass.

    A layer that runs several times is fitted to all its calls at once: the layers that follow on any of them come
    later. They are found by running the network with outputs of the layer that are not numbers. Others come in the
    order of their last calls.

    Args:
        net: the network, in evaluation mode.
        names: of the layers. Those that do not run are left out.
        run: runs the network, on one image.

    Raises:
        UsageError: inputs of a layer follow on its own outputs.
    """
    order, broken = _calls(net, names, run)
    counts = {name: order.count(name) for name in order}
    shared = [name for name, number in counts.items() if number > 1]
    last = {name: i for i, name in enumerate(order)}
    following = {name: _calls(net, counts, run, spoiled=name)[1] - broken for name in shared}
    for name in shared:
        if name in following[name]:
            raise UsageError(
                f"layer {name!r} runs {counts[name]} times in one pass, on inputs that depend on its own outputs: it "
                "cannot be calibrated"
            )

    def shared_before(name: str) -> int:
        return max((shared_before(other) + 1 for other in shared if name in following[other]), default=0)

    return {name: counts[name] for name in sorted(counts, key=lambda name: (shared_before(name), last[name]))}


def _calls(
    net: nn.Module, names: Iterable[str], run: Callable[[nn.Module], Any], spoiled: str | None = None
) -> tuple[list[str], set[str]]:
    """Return the layers as they run, and those with an input that is not a number."""
    order: list[str] = []
    broken: set[str] = set()

    def count(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        order.append(name)
        if args[0].isnan().any():
            broken.add(name)
        return torch.full_like(output, float("nan")) if name == spoiled else None

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(net.get_submodule(name).register_forward_hook(partial(count, name)))
        run(net)
    return order, broken
