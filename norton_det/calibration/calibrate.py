"""Calibration of a compressed network, as a step of compression."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from math import inf, isfinite, sqrt

import torch
from torch import Tensor, nn

from norton_det.calibration.layerwise import calibrate
from norton_det.errors import DataError, UsageError
from norton_det.models.tasks import Images, as_inputs
from norton_det.runtime.modes import copied, evaluating, undone_on_failure
from norton_det.runtime.outputs import TOLERANCE
from norton_det.structure.network import Network

logger = logging.getLogger(__name__)

_COMPARED = 16  # images on which the calibrated network is compared with the dense one


def calibrated(network: Network, reference: Network, images: Images, *, seed: int) -> Network:
    """Calibrate the module of ``network`` in place, and return the network with the step in its provenance.

    The layers of the channel plan are refitted, and those beside it that were decomposed since ``reference``. On the
    first 16 images the features are then compared with those of ``reference``: where calibration did not bring them
    closer it is undone, and a warning is logged. The provenance has both distances.

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
    named = {layer.name for layer in network.plan.layers}
    earlier = [name for name in after if name in before and name not in named]
    outside = check_calibratable(network, [name for name in after if name not in before])
    plan, spec = reference.plan, reference.spec
    if within := network.architecture.within and network.architecture.task.features:
        inside = tuple(layer for layer in plan.layers if layer.name.startswith(f"{within}."))
        plan = replace(plan, layers=inside)
    kept = {}
    for group, width in network.spec.widths.items():
        if width < plan.widths[group]:
            channels = list(spec.kept.get(group, range(plan.widths[group])))
            kept[group] = torch.tensor([channels.index(channel) for channel in network.spec.kept[group]])
    uncalibrated = copied(network.module)
    with undone_on_failure(network.module):
        layers = calibrate(network.module, reference.module, plan, kept, images, seed=seed, outside=outside)
        plain, fitted = _output_errors(network, reference, (uncalibrated, network.module), images)
    logger.info("calibration: error of the outputs on its images %.3g, without calibration %.3g", fitted, plain)
    skipped = dict.fromkeys(earlier, "beside the channel plan, and decomposed before")
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
    errors = {"plain": plain, "fitted": fitted}
    output_error = {key: error if isfinite(error) else None for key, error in errors.items()}
    step = {"images": len(images), "seed": seed, "output_error": output_error, "layers": layers, "skipped": skipped}
    return network.with_step("calibrate", step)


@torch.no_grad()
def _output_errors(
    network: Network, reference: Network, modules: Iterable[nn.Module], images: Images
) -> tuple[float, ...]:
    """Return the distance of each module's features from those of ``reference``, relative to the norm of the latter.

    It is infinite where a value is not finite.

    Raises:
        DataError: it is infinite for all of them.
    """

    def features(net: nn.Module) -> list[Tensor]:
        with evaluating(net):
            levels = network.architecture.task.features_of(net, as_inputs(images[:_COMPARED], net))
            return [level.cpu().double() for level in levels]

    dense = features(reference.module)
    norm = sqrt(sum(level.square().sum().item() for level in dense)) or 1.0
    errors = []
    for module in modules:
        squares = ((ours - its).square().sum().item() for ours, its in zip(features(module), dense, strict=True))
        error = sqrt(sum(squares)) / norm
        errors.append(error if isfinite(error) else inf)
    if not isfinite(min(errors)):
        raise DataError("outputs on the calibration images are not finite, with calibration and without")
    return tuple(errors)


def check_calibratable(network: Network, layers: Iterable[str]) -> list[str]:
    """Return which of these layers the channel plan does not name.

    Raises:
        UsageError: one of them lies behind the architecture's features: what it computes depends on the proposals,
            which differ between two detectors.
    """
    named = {layer.name for layer in network.plan.layers}
    outside = [name for name in layers if name not in named]
    features = network.architecture.task.features
    for name in outside:
        if features and not name.startswith(f"{features}."):
            raise UsageError(
                f"layer {name!r} of {network.architecture.name} cannot be calibrated; expected a layer of the channel "
                f"plan or of {features!r}: decompose it without calibration"
            )
    return outside
