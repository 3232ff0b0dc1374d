"""The choice of the implementation in which each layer trains fastest, with the same parameters and gradients."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions import Decomposition, set_implementation
from norton_det.deployment.autotune import Calls, calls_of, choose_implementations, random_inputs
from norton_det.deployment.record import BlockChoice
from norton_det.errors import UsageError, expect_choice
from norton_det.runtime.modes import evaluating
from norton_det.runtime.timing import time_contenders
from norton_det.training.batch_norm import WideBatchNorm2d

logger = logging.getLogger(__name__)

AUTO = "auto"
"""Name that stands for the fastest implementation of each layer."""


@singledispatch
def training_implementations_of(layer: nn.Module) -> Mapping[str, Callable[[], None]]:
    """Return the functions that set each training implementation of a layer, by name.

    New types of layers are registered with ``singledispatch``. The result is empty for a layer with one implementation.
    """
    return {}


@training_implementations_of.register
def _(block: Decomposition) -> Mapping[str, Callable[[], None]]:
    return {
        implementation: partial(setattr, block, "implementation", implementation)
        for implementation in block.implementations
    }


@training_implementations_of.register
def _(norm: nn.BatchNorm2d) -> Mapping[str, Callable[[], None]]:
    classes = {"torch": nn.BatchNorm2d, "wide": WideBatchNorm2d}
    if type(norm) not in classes.values():
        return {}  # a subclass may compute something else
    return {implementation: partial(setattr, norm, "__class__", kind) for implementation, kind in classes.items()}


def set_implementations(net: nn.Module, implementations: Mapping[str, str]) -> None:
    """Set the training implementation of layers.

    Args:
        net: the network; its layers are changed in place.
        implementations: the name of the implementation of each layer, by the name of the layer.

    Raises:
        UsageError: an unknown layer or implementation.
    """
    modules = dict(net.named_modules())
    for name, implementation in implementations.items():
        setters = training_implementations_of(modules[name]) if name in modules else {}
        if not setters:
            raise UsageError(f"implementation of {name!r}: no such layer with implementations in the network")
        expect_choice(f"implementation of {name!r}:", implementation, setters)
        setters[implementation]()


def use_implementation(
    net: nn.Module,
    implementation: str,
    example_inputs: Callable[[], Any],
    *,
    kept: Mapping[str, str] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    amp: bool = False,
) -> dict[str, str]:
    """Let the decomposed layers train in ``implementation``, or with "auto" these and others each in its fastest.

    Args:
        net: as for :func:`set_fastest_implementations`.
        implementation: of :data:`~norton_det.decompositions.base.IMPLEMENTATIONS`, or "auto".
        example_inputs: returns what they are measured on.
        kept: what "auto" chose before, by the layers' names, if a training is resumed: it is set again, since rounding
            differs by implementation.
        memory_format: as for :func:`set_fastest_implementations`.
        amp: likewise.

    Returns:
        What "auto" chose, by the layers' names.

    Raises:
        UsageError: an unknown implementation.
    """
    if implementation != AUTO:
        set_implementation(net, implementation)
        return {}
    if kept:
        set_implementations(net, kept)
        return dict(kept)
    choices = set_fastest_implementations(net, example_inputs(), memory_format=memory_format, amp=amp)
    return {choice.name: choice.implementation for choice in choices}


def set_fastest_implementations(
    net: nn.Module,
    example_inputs: Any,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    amp: bool = False,
    repeats: int = 2,
) -> tuple[BlockChoice, ...]:
    """Let each layer train in the implementation in which a step of training, forward and back, is fastest here.

    These are the decomposed layers and, in channels_last, batch norms (see :class:`WideBatchNorm2d`).

    Args:
        net: on its device; its buffers stay as they are.
        example_inputs: a batch of the training's shapes: a tuple of arguments, or the only one.
        memory_format: in which it will be trained.
        amp: measure in mixed precision.
        repeats: timed steps of each implementation that may be the fastest.

    Returns:
        The layers, the milliseconds of their implementations and the choices, which are set.
    """
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kinds = (Decomposition, nn.BatchNorm2d) if memory_format == torch.channels_last else Decomposition
    with evaluating(net), torch.no_grad():
        calls = calls_of(
            net, arguments, lambda layer: isinstance(layer, kinds) and bool(training_implementations_of(layer))
        )
    measure = partial(_time_steps, memory_format=memory_format, amp=amp, repeats=repeats)
    choices = choose_implementations(net, calls, measure)
    set_implementations(net, {choice.name: choice.implementation for choice in choices})
    counts = Counter(choice.implementation for choice in choices)
    logger.info(
        "training implementations: %s",
        ", ".join(f"{n} {implementation}" for implementation, n in counts.most_common()) or "none",
    )
    return tuple(choices)


def _time_steps(
    layer: nn.Module, calls: Calls, memory_format: torch.memory_format, amp: bool, repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of a training step of each implementation, on random inputs of these calls."""
    images = [image.requires_grad_() for (image,), _ in random_inputs(layer, calls, memory_format)]
    layer = copy.deepcopy(layer).train()  # a copy: training changes the statistics
    implementations = training_implementations_of(layer)
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def step(implementation: str) -> None:
        implementations[implementation]()
        with torch.autocast(images[0].device.type, enabled=amp):
            outputs: list[Tensor] = [layer(image) for image in images]
        torch.autograd.grad(outputs, [*images, *parameters], [torch.ones_like(output) for output in outputs])

    seconds = time_contenders(
        {implementation: partial(step, implementation) for implementation in implementations}, repeats
    )
    return {implementation: 1e3 * value for implementation, value in seconds.items()}
