"""Calibration of a compressed network, as a step of compression."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.linear_map import not_a_map
from norton_det.errors import DataError, UsageError
from norton_det.models.rcnn_regions import Regions
from norton_det.models.tasks import Images, as_inputs
from norton_det.runtime.modes import copied, evaluating, undone_on_failure
from norton_det.runtime.outputs import TOLERANCE
from norton_det.structure.network import Network

logger = logging.getLogger(__name__)

_COMPARED = 16  # images on which the calibrated network is compared with the dense one


def calibrated(network: Network, reference: Network, images: Images, *, seed: int) -> Network:
    """Calibrate the module of ``network`` in place, and return the network with the step in its provenance.

    The layers of the channel plan are refitted, and those beside it that were decomposed since ``reference``. Of a
    detector of which only the backbone is compressed, these are the layers that compute the features. Otherwise the RPN
    and the heads are calibrated too, on boxes that ``reference`` proposes and finds.

    On the first 16 images the outputs are then compared with those of ``reference``: where calibration did not bring
    them closer it is undone, and a warning is logged. The provenance has both distances, also by output.

    Args:
        network: compressed.
        reference: the network that it was made from, which stays as it is.
        images: without labels, as the network takes them.
        seed: of what is drawn.

    Raises:
        UsageError: there is no image, or a decomposed layer cannot be calibrated.
        DataError: values that are not finite, in layers or in what both forms of the network compute from the images.
    """
    before, after = reference.spec.decompositions, network.spec.decompositions
    fresh = [name for name in after if name not in before]
    check_calibratable(network, fresh)
    architecture, plan, spec = network.architecture, reference.plan, reference.spec
    task, inside = architecture.task, f"{architecture.task.features}."
    regions = None
    if task.features and (not architecture.within or any(not name.startswith(inside) for name in fresh)):
        if not task.runs_in_parts(network.module):
            raise UsageError(
                f"this {architecture.name} does not run as torchvision's detectors do: only its {task.features!r} can "
                "be calibrated"
            )
        regions = task.regions_of(reference.module, images, seed=seed) if len(images) else None
    elif task.features:
        plan = replace(plan, layers=tuple(layer for layer in plan.layers if layer.name.startswith(inside)))
    named = {layer.name for layer in plan.layers}
    outside = [name for name in fresh if name not in named]
    skipped = dict.fromkeys((name for name in before if name not in named), "not calibrated, and decomposed before")
    skipped |= {name: reason for name in named if (reason := not_a_map(reference.module.get_submodule(name)))}
    kept = {}
    for group, width in network.spec.widths.items():
        if width < plan.widths[group]:
            channels = list(spec.kept.get(group, range(plan.widths[group])))
            kept[group] = torch.tensor([channels.index(channel) for channel in network.spec.kept[group]])
    uncalibrated = copied(network.module)
    with undone_on_failure(network.module):
        layers = calibrate(
            network.module, reference.module, plan, kept, images, seed=seed, outside=outside, regions=regions
        )
        errors = _output_errors(network, reference, (uncalibrated, network.module), images, regions)
    plain, fitted = (sqrt(sum(error**2 for error in of_module.values()) / len(of_module)) for of_module in errors)
    logger.info("calibration: error of the outputs on its images %.3g, without calibration %.3g", fitted, plain)
    if fitted > plain + TOLERANCE:
        network.module.load_state_dict(uncalibrated.state_dict())
        logger.warning(
            "calibration is undone: on its images the outputs differ from the dense network's by %.3g of their norm, "
            "without it by %.3g; more or other images may help",
            fitted,
            plain,
        )
        skipped |= dict.fromkeys(layers, "undone: the outputs were farther from the dense network's than before")
        layers = {}
    output_error: dict[str, Any] = _finite({"plain": plain, "fitted": fitted})
    if len(errors[0]) > 1:
        pairs = {name: {"plain": error, "fitted": errors[1][name]} for name, error in errors[0].items()}
        output_error["outputs"] = {name: _finite(pair) for name, pair in pairs.items()}
    step = {"images": len(images), "seed": seed, "output_error": output_error, "layers": layers, "skipped": skipped}
    return network.with_step("calibrate", step)


def _finite(errors: Mapping[str, float]) -> dict[str, float | None]:
    return {key: error if isfinite(error) else None for key, error in errors.items()}


@torch.no_grad()
def _output_errors(
    network: Network, reference: Network, modules: Iterable[nn.Module], images: Images, regions: Regions | None
) -> list[dict[str, float]]:
    """Return for each module the distance of its outputs from those of ``reference``, relative to the latter's norm.

    They are by name, as of :meth:`norton_det.models.tasks.Task.outputs_of`; infinite where a value is not finite.

    Raises:
        DataError: they are infinite for all modules.
    """
    regions = regions and regions.of(slice(_COMPARED))

    def outputs(net: nn.Module) -> dict[str, list[Tensor]]:
        with evaluating(net):
            by_name = network.architecture.task.outputs_of(net, as_inputs(images[:_COMPARED], net), regions)
            return {name: [values.cpu().double() for values in tensors] for name, tensors in by_name.items()}

    dense = outputs(reference.module)
    errors = []
    for module in modules:
        ours = outputs(module)
        errors.append({name: _distance(ours[name], tensors) for name, tensors in dense.items()})
    if not isfinite(min(max(of_module.values()) for of_module in errors)):
        raise DataError("outputs on the calibration images are not finite, with calibration and without")
    return errors


def _distance(ours: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    norm = sqrt(sum(values.square().sum().item() for values in dense)) or 1.0
    squares = ((a - b).square().sum().item() for a, b in zip(ours, dense, strict=True))
    error = sqrt(sum(squares)) / norm
    return error if isfinite(error) else inf


def check_calibratable(network: Network, layers: Iterable[str]) -> None:
    """Check that layers that are decomposed can be calibrated.

    Raises:
        UsageError: one of them lies behind the architecture's features, in a network that does not run in parts: what
            it computes depends on what is chosen before, which differs between two networks.
    """
    task = network.architecture.task
    if not task.features or task.runs_in_parts(network.module):
        return
    for name in layers:
        if not name.startswith(f"{task.features}."):
            raise UsageError(
                f"layer {name!r} of {network.architecture.name} cannot be calibrated; expected a layer of "
                f"{task.features!r}, or a detector that runs as torchvision's do: decompose it without calibration"
            )
