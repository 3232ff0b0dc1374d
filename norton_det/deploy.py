"""Deployment: the fastest equal form of a network for inference, on the machine at hand.

Batch norms are folded into the convolutions before them; each layer that has equal forms (decomposed ones, linear ones,
RoIAlign) becomes the one that is fastest on the shapes that an example gives it; the memory format is the one in which
the whole is fastest. Fewer multiply-accumulates are not always less time, so all of this is measured.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import norton_det.inference_forms  # noqa: F401  registers forms
from norton_det.decompositions.forms import expand, forms_of
from norton_det.errors import DataError, UsageError
from norton_det.folding import fold_norms
from norton_det.formatting import table
from norton_det.measuring import BlockChoice, Calls, calls_of, choose_forms, random_inputs
from norton_det.runtime.timing import time_alternating, time_contenders

logger = logging.getLogger(__name__)

FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Deployment:
    """What :func:`deploy` did to a network.

    Attributes:
        blocks: the layers that have equal forms, and theirs, in the network's order.
        memory_format: of the parameters: "contiguous" or "channels_last".
        folded: batch norms that are gone, by the layer into which each was folded.
        milliseconds: median time of the whole on the example, by name: "given" is the network as it came (in evaluation
            mode), the others are the deployed one in each memory format.
        state: the tensors of the network with its norms folded and its layers as they were: what a file holds.
    """

    blocks: tuple[BlockChoice, ...]
    memory_format: str
    folded: Mapping[str, str]
    milliseconds: Mapping[str, float]
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        """Return a table of the layers that have forms: milliseconds of each, the choice, its share of the whole."""
        whole = self.milliseconds[self.memory_format]
        forms = sorted({form for block in self.blocks for form in block.milliseconds})
        rows = []
        for block in self.blocks:
            taken = block.milliseconds[block.form]
            cells = (f"{block.milliseconds[form]:.2f}" if form in block.milliseconds else "" for form in forms)
            rows.append((block.name, *cells, block.form, f"{taken / whole:.1%}"))
        lines = [f"{name}: {value:.2f} ms" for name, value in self.milliseconds.items()]
        return "\n".join([table(("milliseconds", *forms, "choice", "share"), rows), "", *lines])

    def to_json(self) -> str:
        """Return all but ``state`` as JSON text."""
        return json.dumps({**asdict(replace(self, state={})), "state": {}})

    @classmethod
    def from_json(cls, text: str) -> "Deployment":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: it did not.
        """
        try:
            values = json.loads(text)
            done = cls(**{**values, "blocks": tuple(BlockChoice(**block) for block in values["blocks"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"deployment cannot be read: {type(error).__name__} {error}") from None
        if done.memory_format not in FORMATS:
            raise DataError(
                f"deployment has memory_format {done.memory_format!r}; expected one of: {', '.join(FORMATS)}"
            )
        return done

    def restore(self, net: nn.Module) -> nn.Module:
        """Return the deployed network, without measuring.

        Args:
            net: the network with its norms folded and its layers as they were.

        Raises:
            UsageError: a block or form that there is not.
        """
        deployed = _with_forms(net.eval().requires_grad_(False), self.blocks)
        return _kept(deployed.to(memory_format=FORMATS[self.memory_format]), replace(self, state=net.state_dict()))


def deployment_of(net: object) -> Deployment | None:
    """Return what :func:`deploy` did to ``net``, None if it is not deployed."""
    done = getattr(net, "deployment", None)
    return done if isinstance(done, Deployment) else None


def deploy(
    model: nn.Module,
    example_inputs: Any,
    *,
    repeats: int = 5,
    compile: bool = False,  # torch's own word
) -> nn.Module:
    """Return an equal network for inference that is as fast as its equal forms allow here.

    Args:
        model: a classifier, a detector, or any network with decomposed layers or batch norms in it; it stays as it is.
        example_inputs: what the network is to be fast for: a tuple of its arguments, or the only one (a batch (N, 3, H,
            W), or for a detector a list of images (3, H, W)).
        repeats: timed runs of each form that may be the fastest, and of the whole.
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
        calls = calls_of(net, arguments, _has_forms)
    candidates: dict[str, tuple[nn.Module, list[BlockChoice]]] = {}
    bar = tqdm(FORMATS.items(), desc="deploy", unit="format", disable=None, leave=False)
    for name, memory_format in bar:
        choices = choose_forms(net, calls, partial(_time_forms, memory_format=memory_format, repeats=repeats))
        candidates[name] = (_with_forms(net, choices).to(memory_format=memory_format), choices)
    seconds = _time_whole({"given": given, **{name: net for name, (net, _) in candidates.items()}}, arguments, repeats)
    best = min(candidates, key=lambda name: seconds[name])
    deployed, choices = candidates[best]
    milliseconds = {name: 1e3 * value for name, value in seconds.items()}
    done = Deployment(tuple(choices), best, folded, milliseconds, net.state_dict())
    logger.info("deployed, %s\n%s", best, done)
    _kept(deployed, done)
    return torch.compile(deployed) if compile else deployed  # type: ignore[return-value]


def _kept(net: nn.Module, deployment: Deployment) -> nn.Module:
    # A plain attribute: neither parameter nor buffer, and nothing that forward looks at.
    net.deployment = deployment  # type: ignore[assignment]
    return net


def _has_forms(module: nn.Module) -> bool:
    return any(True for _ in forms_of(module))


def _time_forms(block: nn.Module, calls: Calls, memory_format: torch.memory_format, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each form in calls like these."""
    inputs = random_inputs(block, calls, memory_format)
    forms = {form: expand(block, form).to(memory_format=memory_format) for form in forms_of(block)}

    def run(module: nn.Module) -> Any:
        def once() -> None:
            with torch.inference_mode():
                for arguments, named in inputs:
                    module(*arguments, **named)

        return once

    seconds = time_contenders({form: run(module) for form, module in forms.items()}, repeats)
    return {form: 1e3 * value for form, value in seconds.items()}


def _with_forms(net: nn.Module, choices: Sequence[BlockChoice]) -> nn.Module:
    """Return a copy of ``net`` with each layer in its form."""
    changed = copy.deepcopy(net)
    modules = dict(changed.named_modules())
    for choice in choices:
        block = modules.get(choice.name)
        if block is None or not _has_forms(block):
            raise UsageError(f"{choice.name!r} is no layer of this network that has forms; expected one")
        changed.set_submodule(choice.name, expand(block, choice.form))
    return changed


def _time_whole(nets: Mapping[str, nn.Module], arguments: tuple[Any, ...], repeats: int) -> dict[str, float]:
    def run(net: nn.Module) -> Any:
        def once() -> None:
            with torch.inference_mode():
                net(*arguments)

        return once

    seconds = time_alternating({name: run(net) for name, net in nets.items()}, repeats)
    return {name: median(values) for name, values in seconds.items()}
