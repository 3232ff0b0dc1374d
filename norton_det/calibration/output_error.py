"""How far the outputs of a compressed network are from those of the dense one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import columns_of
from norton_det.errors import DataError
from norton_det.models.rcnn_regions import Regions
from norton_det.models.tasks import Images, as_inputs
from norton_det.runtime.modes import evaluating
from norton_det.structure.network import Network

_COMPARED = 16  # images on which networks are compared
_CHUNK = 4  # of them at a time


@torch.no_grad()
def output_errors(
    reference: Network,
    modules: Iterable[nn.Module],
    kept: Mapping[str, Tensor],
    images: Images,
    regions: Regions | None,
) -> list[dict[str, float]]:
    """Return for each module the distance of its outputs from those of ``reference``, relative to the latter's norm.

    They are by name, as of :meth:`norton_det.models.tasks.Task.outputs_of`; infinite where a value is not finite. The
    features are compared in the channels that are left of them.

    Args:
        reference: the network that the modules were made from.
        modules: several forms of one network.
        kept: group -> channels of ``reference`` that they have, where these are fewer.
        images: of which the first 16 are used.
        regions: boxes of the images; None: the features alone are compared.

    Raises:
        DataError: they are infinite for all modules.
    """
    task, plan = reference.architecture.task, reference.plan
    channels = next(
        (columns_of(layer, plan.widths, kept) for layer in plan.layers if layer.name == task.features), None
    )
    groups = task.feature_groups(reference.module)

    def outputs(net: nn.Module, part: slice) -> dict[str, list[Tensor]]:
        with evaluating(net):
            by_name = task.outputs_of(net, as_inputs(images[part], net), regions and regions.of(part))
            return {name: [values.cpu().double() for values in tensors] for name, tensors in by_name.items()}

    modules = list(modules)
    squares: list[dict[str, float]] = [defaultdict(float) for _ in (reference, *modules)]  # the first of the outputs
    for start in range(0, min(_COMPARED, len(images)), _CHUNK):
        part = slice(start, start + _CHUNK)
        dense = outputs(reference.module, part)
        if channels is not None:
            dense["features"] = [values[:, channels] for values in dense["features"]]
        for i, group in enumerate(groups):
            if group in kept:
                dense["features"][i] = dense["features"][i][:, kept[group]]
        for name, tensors in dense.items():
            squares[0][name] += _square(tensors)
        for module, of_module in zip(modules, squares[1:], strict=True):
            for name, tensors in outputs(module, part).items():
                of_module[name] += _square([a - b for a, b in zip(tensors, dense[name], strict=True)])
    norms = {name: sqrt(square) or 1.0 for name, square in squares[0].items()}
    errors = [{name: _relative(square, norms[name]) for name, square in of_module.items()} for of_module in squares[1:]]
    if not isfinite(min(max(of_module.values()) for of_module in errors)):
        raise DataError("outputs on the calibration images are not finite, with calibration and without")
    return errors


def _square(tensors: Sequence[Tensor]) -> float:
    return sum(values.square().sum().item() for values in tensors)


def _relative(square: float, norm: float) -> float:
    error = sqrt(square) / norm
    return error if isfinite(error) else inf


def overall(errors: Mapping[str, float]) -> float:
    """Return the root mean square of the errors of all outputs."""
    return sqrt(sum(error**2 for error in errors.values()) / len(errors))


def as_report(plain: Mapping[str, float], fitted: Mapping[str, float]) -> dict[str, Any]:
    """Return the errors of all outputs together, and where there are several also of each; None: not finite."""
    report: dict[str, Any] = {"plain": _finite(overall(plain)), "fitted": _finite(overall(fitted))}
    if len(plain) > 1:
        by_name = {name: {"plain": _finite(plain[name]), "fitted": _finite(fitted[name])} for name in plain}
        report["outputs"] = by_name
    return report


def _finite(error: float) -> float | None:
    return error if isfinite(error) else None
