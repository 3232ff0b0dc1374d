"""The network that is exported: equal to the given one, with layers that graphs can hold, norms folded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from norton_det.decompositions import Decomposition
from norton_det.deployment.deploy import with_norms_folded
from norton_det.deployment.equality import Reference
from norton_det.deployment.implementations import expand
from norton_det.deployment.implementations.linear import ConvolvedLinear
from norton_det.deployment.implementations.roi_align import GatheredRoIAlign
from norton_det.deployment.precision import raised
from norton_det.deployment.restore import in_memory_format
from norton_det.export.implementations import AUTO, Choose, Runner, chooser, in_torch
from norton_det.models.exact_resize import resize_exactly
from norton_det.runtime.given import unwrapped
from norton_det.runtime.modes import copied

PLAIN: Mapping[type[nn.Module], type[nn.Module]] = {
    ConvolvedLinear: nn.Linear,
    GatheredRoIAlign: MultiScaleRoIAlign,
}
"""Classes of deployed layers that depend on values or on a memory format, and those with the same parameters."""


def as_evaluated(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of a network as it is run here: in evaluation mode, float32, on the CPU; and what that changes."""
    net = copied(unwrapped(model)).eval().requires_grad_(False)
    types = {str(values.dtype).removeprefix("torch.") for values in net.parameters()} - {"float32"}
    changes = (f"{' and '.join(sorted(types))} parameters are float32",) if types else ()
    return raised(net.cpu()), changes


def exportable(
    model: nn.Module,
    arguments: tuple[Any, ...],
    *,
    fold: bool = True,
    implementation: str = AUTO,
    runner: Runner = in_torch,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network to export, in evaluation mode, and what was replaced for it, in words.

    Args:
        model: of :func:`as_evaluated`; it stays as it is.
        arguments: an example.
        fold: fold batch norms into the layers before them.
        implementation: of the decomposed layers; see :func:`norton_det.export.implementations.chooser`.
        runner: computes a layer in the runtime.

    Raises:
        UsageError: an unknown implementation; the network does not run on the example.
    """
    changes: list[str] = []
    net = in_memory_format(copied(model), torch.contiguous_format)
    _make_plain(net, changes)
    if resize_exactly(net):
        changes.append("sizes of scaled images are computed in double precision")
    if fold:
        with torch.no_grad():
            net, pairs, _ = with_norms_folded(net, arguments, Reference(net, arguments))
        changes += [f"{len(pairs)} batch norms are folded"] if pairs else []
    _expand(net, chooser(implementation, net, arguments, runner), changes)
    return net, tuple(changes)


def _make_plain(net: nn.Module, changes: list[str]) -> None:
    for kind, plain in PLAIN.items():
        layers = [module for module in net.modules() if type(module) is kind]
        for layer in layers:
            layer.__class__ = plain
        if layers:
            changes.append(f"{len(layers)} {kind.__name__} are {plain.__name__}")


def _expand(net: nn.Module, choose: Choose, changes: list[str]) -> None:
    counts: dict[str, int] = {}
    for name, layer in [*net.named_modules()]:
        if isinstance(layer, Decomposition):
            implementation = choose(name, layer)
            net.set_submodule(name, expand(layer, implementation))
            counts[implementation] = counts.get(implementation, 0) + 1
    if counts:
        changes.append(f"decomposed layers: {', '.join(f'{count} {name}' for name, count in counts.items())}")
