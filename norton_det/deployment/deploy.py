"""Deployment: the fastest equal implementation of a network for inference, on this machine.

Batch norms are folded into the layers before them; each layer that has equal implementations (decomposed, linear,
RoIAlign) is replaced by the one that is fastest on the input shapes of an example; the memory format is the one in
which the whole network is fastest. Fewer multiply-accumulates are not always less time, so all of this is measured. The
result is compared with the given network on the example: what changes its outputs is undone. Where lower precision is
asked for, the implementations are those that are fastest in it, and its error on the example is part of the record.
"""

import logging
from collections.abc import Mapping, Sequence
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
from norton_det.deployment.precision import check_dtype, lowered, rounded
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
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return an equal network for inference that is as fast as its equal implementations allow on this machine.

    Args:
        model: a classifier, a detector, or any network with decomposed layers or batch norms in it; it stays as it is.
        example_inputs: the inputs whose time is minimised: a tuple of the network's arguments, or its only one (a batch
            (N, 3, H, W), or for a detector a list of images (3, H, W)).
        repeats: timed runs of the whole network, and of each implementation that may be the fastest.
        compile: pass the result to ``torch.compile`` as well.
        dtype: lower precision, ``torch.bfloat16`` or ``torch.float16``, in which a network in float32 is to compute. It
            takes and returns float32, and in torchvision's detectors boxes, non-maximum suppression and the coordinates
            of RoIAlign stay in float32. None: the precision that the network has.

    Returns:
        The network in evaluation mode, its parameters frozen. Its outputs on the example were compared with those of
        ``model`` in evaluation mode: they agree up to rounding, 1e-4 of the largest value in float32. With ``dtype``
        all other changes were compared so in float32. Its attribute ``deployment`` (:class:`Deployment`) records what
        was done, and what stayed as it was, with the reason; its ``difference`` is the error of lower precision too.

    Raises:
        UsageError: repeats below 1; the network is deployed already, is a script of torch, or does not run on the
            example, or not in ``dtype``; an unknown ``dtype``, or one for a network that is not in float32.

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
    if dtype is not None:
        check_dtype(model, dtype)
    given = copied(model).eval().requires_grad_(False)
    with torch.no_grad():
        exact = Reference(given, arguments)
        net, folded, unchanged = with_norms_folded(given, arguments, exact)
        net = net if dtype is None else rounded(net, dtype)
        reference = exact if dtype is None else Reference(net, arguments)
        calls = _calls(net, arguments, dtype)
    choices: dict[str, list[BlockChoice]] = {}
    candidates: dict[str, nn.Module] = {}
    bar = tqdm(MEMORY_FORMATS.items(), desc="deploy", unit="format", disable=None, leave=False)
    for name, memory_format in bar:
        measure = partial(_time_implementations, memory_format=memory_format, repeats=repeats)
        fastest = choose_implementations(_lowered(net, dtype), calls, measure)
        choices[name], candidates[name] = _equal_choices(net, fastest, memory_format, reference)
    milliseconds, best = _time_networks(given, candidates, arguments, repeats, dtype)
    chosen = {choice.name for choice in choices[best]}
    unchanged |= {name: reference.problem or CHANGES_OUTPUTS for name in calls if name not in chosen}
    if undone := [name for name, reason in unchanged.items() if reason in (CHANGES_OUTPUTS, reference.problem)]:
        logger.warning("deploy: left as they are, %s: %s", reference.problem or CHANGES_OUTPUTS, ", ".join(undone))
    result = _lowered(candidates[best], dtype)
    kept = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    state = _lowered(net, dtype).state_dict()
    difference = exact.difference(result)
    record = Deployment(tuple(choices[best]), best, folded, milliseconds, unchanged, difference, state, **kept)
    logger.info("deployed, %s\n%s", best, record)
    deployed = with_record(result, record)
    return torch.compile(deployed) if compile else deployed  # type: ignore[return-value]


def _lowered(net: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return the network, or a copy of it that computes in ``dtype``."""
    return net if dtype is None else lowered(copied(net), dtype)


def _calls(net: nn.Module, arguments: tuple[Any, ...], dtype: torch.dtype | None) -> dict[str, Calls]:
    """Return the calls of each layer that can be replaced, in the precision in which it will run.

    Raises:
        UsageError: the network does not run in ``dtype``.
    """
    try:
        return calls_of(copied(_lowered(net, dtype)), arguments, _is_replaceable)
    except Exception as error:  # whatever a network's own code raises
        raise UsageError(f"model does not run in {dtype}: {type(error).__name__}: {error}") from error


def _time_networks(
    given: nn.Module,
    candidates: Mapping[str, nn.Module],
    arguments: tuple[Any, ...],
    repeats: int,
    dtype: torch.dtype | None,
) -> tuple[dict[str, float], str]:
    """Return the milliseconds of the given network and of the candidates, and the name of the fastest of these.

    With lower precision it is those in it that count; "float32" is then the faster one of the same in float32.
    """
    networks = {name: _lowered(net, dtype) for name, net in candidates.items()}
    exact = {} if dtype is None else {f"{name}, float32": net for name, net in candidates.items()}
    runs = {
        name: partial(_run, copied(net), ((arguments, {}),))  # a copy: a network may keep what it saw
        for name, net in [("given", given), *networks.items(), *exact.items()]
    }
    milliseconds = {name: 1e3 * median(seconds) for name, seconds in time_alternating(runs, repeats).items()}
    best = min(candidates, key=milliseconds.__getitem__)
    if exact:
        fastest = min(exact, key=milliseconds.__getitem__)
        milliseconds = {name: milliseconds[name] for name in runs if name not in exact} | {
            "float32": milliseconds[fastest]
        }
        if milliseconds["float32"] <= milliseconds[best]:
            logger.warning(
                "deploy: %s is not faster than float32 on the example: %.2f against %.2f ms",
                dtype,
                milliseconds[best],
                milliseconds["float32"],
            )
    return milliseconds, best


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
