"""The forms in which decomposed layers train fastest: same parameters and gradients, measured on a batch's shapes."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions import Decomposition, in_form, set_form, set_forms
from norton_det.measuring import BlockChoice, Calls, calls_of, choose_forms, random_inputs
from norton_det.timing import time_alternating
from norton_det.weights import read_file

logger = logging.getLogger(__name__)


AUTO = "auto"
"""In place of a form: the fastest one, block by block."""


def use_form(
    net: nn.Module,
    form: str,
    example_inputs: Callable[[], Any],
    *,
    resume: str = "",
    memory_format: torch.memory_format = torch.contiguous_format,
    amp: bool = False,
) -> dict[str, str]:
    """Let the decomposed layers be computed in ``form``, or with "auto" each in its fastest.

    Args:
        net: as for :func:`set_fastest_forms`.
        form: of :data:`~norton_det.decompositions.FORMS`, or "auto".
        example_inputs: returns what they are measured on.
        resume: checkpoint of a training that goes on: what "auto" chose for it, ``forms`` in its arguments, is set
            again, since rounding differs by form.
        memory_format: as for :func:`set_fastest_forms`.
        amp: likewise.

    Returns:
        What "auto" chose, by the blocks' names.

    Raises:
        UsageError: an unknown form.
    """
    if form != AUTO:
        set_form(net, form)
        return {}
    if resume and (kept := read_file(resume).get("args", {}).get("forms")):
        set_forms(net, kept)
        return dict(kept)
    choices = set_fastest_forms(net, example_inputs(), memory_format=memory_format, amp=amp)
    return {choice.name: choice.form for choice in choices}


def set_fastest_forms(
    net: nn.Module,
    example_inputs: Any,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    amp: bool = False,
    repeats: int = 2,
) -> tuple[BlockChoice, ...]:
    """Let each decomposed layer be computed in the form in which a step of training, forward and back, is fastest here.

    Args:
        net: on its device; its buffers stay as they are.
        example_inputs: a batch of the training's shapes: a tuple of arguments, or the only one.
        memory_format: in which it will be trained.
        amp: measure in mixed precision.
        repeats: timed steps of each form.

    Returns:
        The blocks, the milliseconds of their forms and the choices, which are set.
    """
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = net.training
    with torch.no_grad():
        calls = calls_of(net.eval(), arguments, lambda module: isinstance(module, Decomposition))
    net.train(training)
    measure = partial(_time_steps, memory_format=memory_format, amp=amp, repeats=repeats)
    choices = choose_forms(net, calls, measure)
    set_forms(net, {choice.name: choice.form for choice in choices})
    counts = Counter(choice.form for choice in choices)
    logger.info(
        "forms of decomposed layers: %s", ", ".join(f"{n} {form}" for form, n in counts.most_common()) or "none"
    )
    return tuple(choices)


def _time_steps(
    block: Decomposition, calls: Calls, memory_format: torch.memory_format, amp: bool, repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of a step of each form on inputs of these calls."""
    images = [image.requires_grad_() for (image,), _ in random_inputs(block, calls, memory_format)]
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]

    def step(form: str) -> None:
        with in_form(block, form), torch.autocast(images[0].device.type, enabled=amp):
            outputs: list[Tensor] = [block(image) for image in images]
        torch.autograd.grad(outputs, [*images, *parameters], [torch.ones_like(output) for output in outputs])

    seconds = time_alternating({form: partial(step, form) for form in block.forms}, repeats)
    return {form: 1e3 * median(values) for form, values in seconds.items()}
