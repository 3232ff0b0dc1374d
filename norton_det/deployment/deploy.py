"""Deployment: the fastest equal implementation of a network for inference, on the machine at hand.

Batch norms are folded into the convolutions before them; each layer that has equal implementations (decomposed, linear,
RoIAlign) becomes the one that is fastest on the shapes that an example gives it; the memory format is the one in which
the whole is fastest. Fewer multiply-accumulates are not always less time, so all of this is measured.
"""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from norton_det.deployment.autotune import Calls, calls_of, choose_implementations, random_inputs
from norton_det.deployment.fold_batch_norm import fold_norms
from norton_det.deployment.implementations import expand, implementations_of
from norton_det.deployment.record import MEMORY_FORMATS, BlockChoice, Deployment
from norton_det.deployment.restore import has_implementations, with_implementations, with_record
from norton_det.errors import UsageError
from norton_det.runtime.timing import time_alternating, time_contenders

logger = logging.getLogger(__name__)


def deploy(
    model: nn.Module,
    example_inputs: Any,
    *,
    repeats: int = 5,
    compile: bool = False,  # torch's own word
) -> nn.Module:
    """Return an equal network for inference that is as fast as its equal implementations allow here.

    Args:
        model: a classifier, a detector, or any network with decomposed layers or batch norms in it; it stays as it is.
        example_inputs: what the network is to be fast for: a tuple of its arguments, or the only one (a batch (N, 3, H,
            W), or for a detector a list of images (3, H, W)).
        repeats: timed runs of each implementation that may be the fastest, and of the whole.
        compile: hand the result to ``torch.compile`` as well.

    Returns:
        The network in evaluation mode, its parameters frozen. Outputs agree with those of ``model`` in evaluation mode
        up to rounding. What was done is in its attribute ``deployment`` (:class:`Deployment`).

    Raises:
        UsageError: repeats below 1.
    """
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1")
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    given = copy.deepcopy(model).eval().requires_grad_(False)
    net = copy.deepcopy(given)
    with torch.inference_mode():
        folded = fold_norms(net, arguments)
        calls = calls_of(net, arguments, has_implementations)
    candidates: dict[str, tuple[nn.Module, list[BlockChoice]]] = {}
    bar = tqdm(MEMORY_FORMATS.items(), desc="deploy", unit="format", disable=None, leave=False)
    for name, memory_format in bar:
        choices = choose_implementations(
            net, calls, partial(_time_implementations, memory_format=memory_format, repeats=repeats)
        )
        candidates[name] = (with_implementations(net, choices).to(memory_format=memory_format), choices)
    seconds = _time_whole({"given": given, **{name: net for name, (net, _) in candidates.items()}}, arguments, repeats)
    best = min(candidates, key=lambda name: seconds[name])
    deployed, choices = candidates[best]
    milliseconds = {name: 1e3 * value for name, value in seconds.items()}
    done = Deployment(tuple(choices), best, folded, milliseconds, net.state_dict())
    logger.info("deployed, %s\n%s", best, done)
    with_record(deployed, done)
    return torch.compile(deployed) if compile else deployed  # type: ignore[return-value]


def _time_implementations(
    block: nn.Module, calls: Calls, memory_format: torch.memory_format, repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of each implementation in calls like these."""
    inputs = random_inputs(block, calls, memory_format)
    implementations = {
        implementation: expand(block, implementation).to(memory_format=memory_format)
        for implementation in implementations_of(block)
    }

    def run(module: nn.Module) -> Any:
        def once() -> None:
            with torch.inference_mode():
                for arguments, named in inputs:
                    module(*arguments, **named)

        return once

    seconds = time_contenders(
        {implementation: run(module) for implementation, module in implementations.items()}, repeats
    )
    return {implementation: 1e3 * value for implementation, value in seconds.items()}


def _time_whole(nets: Mapping[str, nn.Module], arguments: tuple[Any, ...], repeats: int) -> dict[str, float]:
    def run(net: nn.Module) -> Any:
        def once() -> None:
            with torch.inference_mode():
                net(*arguments)

        return once

    seconds = time_alternating({name: run(net) for name, net in nets.items()}, repeats)
    return {name: median(values) for name, values in seconds.items()}
