"""Which outputs are kept between two passes, found by running a network on one image."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.calibration.kept import Cut, Outputs, returning
from norton_det.calibration.lockstep import Run, StoppedError

KEPT = 2**28
"""Limit of the numbers that are kept of each network for all images: 1 GB in single precision."""


@dataclass(frozen=True)
class Cuts:
    """Where the passes of a part of a network begin.

    Attributes:
        before: for each layer, in the order in which they are fitted, the cut once all layers before it are fitted; and
            that after the last one.
        calls: how often modules run.
        largest: numbers in the largest output of a module for one image.
    """

    before: list[Cut]
    calls: Mapping[str, int]
    largest: int


@torch.no_grad()
def cuts_of(net: nn.Module, layers: Sequence[str], run: Run, images: int) -> Cuts:
    """Choose for each layer where the pass in which it is fitted begins.

    A module need not run again once all its layers are fitted, nor one that does not depend on any layer. Its output is
    needed if what other modules read, or what the network returns, follows on it directly: that is found with an output
    that is not a number. Where more than :data:`KEPT` numbers would be kept, the pass begins where the one before it
    began.

    Args:
        net: the dense network, in evaluation mode.
        layers: in the order in which they are fitted.
        run: runs the network, on one image.
        images: number of all images.
    """
    inside = {name: set[str]() for name in _independent(net, layers, run)} | _inside(layers)
    outputs = _outputs(net, inside, run)
    cuts, done = [Cut()], set[str]()
    readers: dict[str, str | None] = {}
    for layer in layers:
        done.add(layer)
        ended = [name for name in outputs if inside[name] <= done]
        outermost = [name for name in ended if not any(name.startswith(f"{other}.") for other in ended)]
        given = {name: outputs[name] for name in outermost}
        larger = any(layer != name and layer in inside[name] for name in outermost)  # what was read within it is not
        for name in outermost:
            before = readers.get(name, layer)
            if before is not None and (larger or before in done):  # otherwise it is read as before, or never again
                readers[name] = _reader(net, name, given, [name for name in layers if name not in done], run)
        kept = tuple(name for name in outermost if readers[name] is not None)
        passed = tuple(name for name in outermost if readers[name] is None)
        size = images * sum(output.numel() for name in kept for output in outputs[name])
        cuts.append(Cut(kept, passed) if size <= KEPT else cuts[-1])
    calls = {name: len(calls) for name, calls in outputs.items()}
    return Cuts(cuts, calls, max(output.numel() for calls in outputs.values() for output in calls))


def _independent(net: nn.Module, layers: Sequence[str], run: Run) -> list[str]:
    """Return the modules that have no layer inside, and whose output does not follow on one."""
    around = {".".join(name.split(".")[:i]) for name in layers for i in range(name.count(".") + 2)}
    within = tuple(f"{name}." for name in layers)
    beside = [name for name, _ in net.named_modules() if name not in around and not name.startswith(within)]
    with ExitStack() as hooks:
        for name in layers:
            spoil = lambda module, args, output: torch.full_like(output, float("nan"))  # noqa: E731
            hooks.enter_context(net.get_submodule(name).register_forward_hook(spoil))
        outputs = _outputs(net, beside, run)
    return [name for name, calls in outputs.items() if not any(_has_nan(output) for output in calls)]


def _inside(layers: Sequence[str]) -> dict[str, set[str]]:
    """Return the layers, and modules with several of them, each with the layers inside."""
    inside: dict[str, set[str]] = {name: {name} for name in layers}
    for name in layers:
        parts = name.split(".")
        for outer in (".".join(parts[:i]) for i in range(1, len(parts))):
            inside.setdefault(outer, set()).add(name)
    return {name: within for name, within in inside.items() if len(within) > 1 or name in within}


def _outputs(net: nn.Module, names: Iterable[str], run: Run) -> Outputs:
    """Return what modules return that return one tensor each."""
    outputs: Outputs = {}

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.setdefault(name, []).append(output.clone())

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(net.get_submodule(name).register_forward_hook(partial(after, name)))
        run(net)
    return outputs


def _reader(net: nn.Module, name: str, given: Outputs, left: Sequence[str], run: Run) -> str | None:
    """Return the first layer of those left that follows directly on an output; "" if only what is returned does."""
    spoiled = [output.to("meta") for output in given[name]]
    found: list[str] = []

    def before(layer: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if _has_nan(args[0]):
            found.append(layer)
            raise StoppedError

    with returning(net, {**given, name: spoiled}), ExitStack() as hooks, suppress(StoppedError):
        for layer in left:
            hooks.enter_context(net.get_submodule(layer).register_forward_pre_hook(partial(before, layer)))
        result = run(net)
    if found:
        return found[0]
    return "" if any(_has_nan(tensor) for tensor in _tensors(result)) else None


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (Mapping, list, tuple)):
        for value in result.values() if isinstance(result, Mapping) else result:
            yield from _tensors(value)


def _has_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())
