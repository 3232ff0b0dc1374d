"""Layers that run several times: in which order layers can be fitted, and in how many passes."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.errors import UsageError

Round = dict[str, int]
"""The layers that are fitted in one pass, and how often each runs in it."""


@torch.no_grad()
def schedule(net: nn.Module, names: Iterable[str], run: Callable[[nn.Module], Any]) -> list[Round]:
    """Divide layers into rounds, one pass of the images each.

    A layer that runs several times is fitted to all its calls at once, so that what follows on one of them is computed
    with the fitted layer in the next pass only: the round of a layer is the number of such layers on the way to it.
    What follows on a layer is found by running the network with outputs of the layer that are not numbers.

    Args:
        net: the network, in evaluation mode.
        names: of the layers. Those that do not run are in no round.
        run: runs the network, on one image.

    Raises:
        UsageError: inputs of a layer follow on its own outputs.
    """
    counts, broken = _calls(net, names, run)
    shared = [name for name, number in counts.items() if number > 1]
    following = {name: _calls(net, counts, run, spoiled=name)[1] - broken for name in shared}
    for name in shared:
        if name in following[name]:
            raise UsageError(
                f"layer {name!r} runs {counts[name]} times in one pass, on inputs that depend on its own outputs: it "
                "cannot be calibrated"
            )

    def round_of(name: str) -> int:
        return max((round_of(other) + 1 for other in shared if name in following[other]), default=0)

    rounds: list[Round] = []
    for name, number in counts.items():
        rounds += [{} for _ in range(round_of(name) + 1 - len(rounds))]
        rounds[round_of(name)][name] = number
    return rounds


def _calls(
    net: nn.Module, names: Iterable[str], run: Callable[[nn.Module], Any], spoiled: str | None = None
) -> tuple[Round, set[str]]:
    """Return how often layers run, in the order of their first call, and those with an input that is not a number."""
    counts: Round = {}
    broken: set[str] = set()

    def count(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        counts[name] = counts.get(name, 0) + 1
        if args[0].isnan().any():
            broken.add(name)
        return torch.full_like(output, float("nan")) if name == spoiled else None

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(net.get_submodule(name).register_forward_hook(partial(count, name)))
        run(net)
    return counts, broken
