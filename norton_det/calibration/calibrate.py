"""Calibration of a compressed network, as a step of compression."""

import logging
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.linear_map import not_a_map
from norton_det.calibration.output_error import as_report, output_errors, overall
from norton_det.errors import UsageError
from norton_det.models.tasks import Images
from norton_det.runtime.modes import copied, undone_on_failure
from norton_det.runtime.outputs import TOLERANCE
from norton_det.structure.network import Network

logger = logging.getLogger(__name__)


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
    architecture, plan = network.architecture, reference.plan
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
    kept = _kept_since(network, reference)
    uncalibrated = copied(network.module)
    with undone_on_failure(network.module):
        layers = calibrate(
            network.module, reference.module, plan, kept, images, seed=seed, outside=outside, regions=regions
        )
        errors = output_errors(reference, (uncalibrated, network.module), kept, images, regions)
    plain, fitted = map(overall, errors)
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
    step = {
        "images": len(images),
        "seed": seed,
        "output_error": as_report(*errors),
        "layers": layers,
        "skipped": skipped,
    }
    return network.with_step("calibrate", step)


def _kept_since(network: Network, reference: Network) -> dict[str, Tensor]:
    """Return the channels of ``reference`` that ``network`` has, by group, where these are fewer."""
    kept, widths = {}, reference.plan.widths
    for group, width in network.spec.widths.items():
        if width < widths[group]:
            channels = list(reference.spec.kept.get(group, range(widths[group])))
            kept[group] = torch.tensor([channels.index(channel) for channel in network.spec.kept[group]])
    return kept


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
