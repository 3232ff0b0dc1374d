"""Deployment: the fastest equal implementation of a network for inference, on this machine.

Batch norms are folded into the layers before them; each layer that has equal implementations (decomposed, linear,
RoIAlign) is replaced by the one that is fastest on the input shapes of an example; the memory format is the one in
which the whole network is fastest. Fewer multiply-accumulates are not always less time, so all of this is measured. The
result is compared with the given network on the example: what changes its outputs is undone.
"""

import logging
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from norton_det.decompositions import Decomposition
from norton_det.deployment.autotune import Calls, calls_of, choose_implementations, random_inputs
from norton_det.deployment.equality import Reference
from norton_det.deployment.fold_batch_norm import fold_norms
from norton_det.deployment.followers import followers
from norton_det.deployment.implementations import expand, has_implementations, implementations_of
from norton_det.deployment.record import MEMORY_FORMATS, BlockChoice, Deployment, refuse_deployed
from norton_det.deployment.restore import in_memory_format, with_implementations, with_record
from norton_det.errors import UsageError
from norton_det.runtime.given import has_hooks, unwrapped
from norton_det.runtime.modes import copied
from norton_det.runtime.timing import time_alternating, time_contenders

CHANGES_OUTPUTS = "since the outputs on the example would change"
logger = logging.getLogger(__name__)


def deploy(
    model: nn.Module,
    example_inputs: Any,
    *,
    repeats: int = 5,
    compile: bool = False,  # as torch names it
) -> nn.Module:
    """Return an equal network for inference that is as fast as its equal implementations allow on this machine.

    Args:
        model: a classifier, a detector, or any network with decomposed layers or batch norms in it; it stays as it is.
        example_inputs: the inputs whose time is minimised: a tuple of the network's arguments, or its only one (a batch
            (N, 3, H, W), or for a detector a list of images (3, H, W)).
        repeats: timed runs of the whole network, and of each implementation that may be the fastest.
        compile: pass the result to ``torch.compile`` as well.

    Returns:
        The network in evaluation mode, its parameters frozen. Its outputs on the example were compared with those of
        ``model`` in evaluation mode: they agree up to rounding, 1e-4 of the largest value in float32. Its attribute
        ``deployment`` (:class:`Deployment`) records what was done, and what stayed as it was, with the reason.

    Raises:
        UsageError: repeats below 1; the network is deployed already, is a script of torch, or does not run on the
            example.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import norton_det as nd
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> images = torch.randn(2, 3, 16, 16)
        >>> fast = nd.deploy(net, images, repeats=1)
        >>> fast.deployment.folded
        {'1': '0'}
        >>> torch.allclose(fast(images), net(images), atol=1e-5)
        True
    """
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}; expected at least 1")
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"model is a {type(model).__name__}; expected a module whose layers are Python objects")
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    model = unwrapped(model)
    refuse_deployed(model)
    given = copied(model).eval().requires_grad_(False)
    with torch.no_grad():
        reference = Reference(given, arguments)
        net, folded, unchanged = with_norms_folded(given, arguments, reference)
        calls = calls_of(copied(net), arguments, _is_replaceable)
    choices: dict[str, list[BlockChoice]] = {}
    candidates: dict[str, nn.Module] = {}
    bar = tqdm(MEMORY_FORMATS.items(), desc="deploy", unit="format", disable=None, leave=False)
    for name, memory_format in bar:
        measure = partial(_time_implementations, memory_format=memory_format, repeats=repeats)
        fastest = choose_implementations(net, calls, measure)
        choices[name], candidates[name] = _equal_choices(net, fastest, memory_format, reference)
    runs = {
        name: partial(_run, copied(candidate), ((arguments, {}),))  # a copy: a network may keep what it saw
        for name, candidate in [("given", given), *candidates.items()]
    }
    milliseconds = {name: 1e3 * median(seconds) for name, seconds in time_alternating(runs, repeats).items()}
    best = min(candidates, key=milliseconds.__getitem__)
    chosen = {choice.name for choice in choices[best]}
    unchanged |= {name: reference.problem or CHANGES_OUTPUTS for name in calls if name not in chosen}
    difference = reference.difference(candidates[best])
    record = Deployment(tuple(choices[best]), best, folded, milliseconds, unchanged, difference, net.state_dict())
    if undone := [name for name, reason in unchanged.items() if reason in (CHANGES_OUTPUTS, reference.problem)]:
        logger.warning("deploy: left as they are, %s: %s", reference.problem or CHANGES_OUTPUTS, ", ".join(undone))
    logger.info("deployed, %s\n%s", best, record)
    deployed = with_record(candidates[best], record)
    return torch.compile(deployed) if compile else deployed  # type: ignore[return-value]


def with_norms_folded(
    given: nn.Module, arguments: tuple[Any, ...], reference: Reference
) -> tuple[nn.Module, dict[str, str], dict[str, str]]:
    """Return a copy of the network with its norms folded, which ones into what, and why the others are not."""

    def with_folded(pairs: Sequence[tuple[str, str]]) -> nn.Module:
        net = copied(given)
        fold_norms(net, dict(pairs))
        return net

    pairs, unchanged = followers(copied(given), arguments)
    folded = dict(reference.keeps(list(pairs.items()), with_folded))
    unchanged |= {name: reference.problem or CHANGES_OUTPUTS for name in pairs if name not in folded}
    return with_folded(list(folded.items())), folded, unchanged


def _equal_choices(
    net: nn.Module, choices: Sequence[BlockChoice], memory_format: torch.memory_format, reference: Reference
) -> tuple[list[BlockChoice], nn.Module]:
    """Return the choices that keep the outputs, and a copy of the network with these implementations."""

    def with_choices(part: Sequence[BlockChoice]) -> nn.Module:
        return in_memory_format(with_implementations(net, part), memory_format)

    kept = reference.keeps(choices, with_choices)
    return kept, with_choices(kept)


def _is_replaceable(layer: nn.Module) -> bool:
    """Tell whether a layer has equal implementations, and nothing at it that they would lose."""
    return has_implementations(layer) and not (isinstance(layer, Decomposition) and has_hooks(layer))


def _time_implementations(
    layer: nn.Module, calls: Calls, memory_format: torch.memory_format, repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of each implementation in calls of these shapes."""
    inputs = random_inputs(layer, calls, memory_format)
    runs = {
        implementation: partial(_run, in_memory_format(expand(layer, implementation), memory_format), inputs)
        for implementation in implementations_of(layer)
    }
    return {implementation: 1e3 * seconds for implementation, seconds in time_contenders(runs, repeats).items()}


def _run(module: nn.Module, calls: Calls) -> None:
    with torch.inference_mode():
        for arguments, named in calls:
            module(*arguments, **named)
