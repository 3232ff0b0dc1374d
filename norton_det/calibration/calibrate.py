"""Calibration of a compressed network, as a step of compression."""

from collections.abc import Iterable

import torch

from norton_det.calibration.layerwise import calibrate
from norton_det.errors import UsageError
from norton_det.models.tasks import Images
from norton_det.structure.network import Network


def calibrated(network: Network, reference: Network, images: Images, *, seed: int) -> Network:
    """Calibrate the module of ``network`` in place, and return the network with the step in its provenance.

    The layers of the channel plan are refitted, and those beside it that were decomposed since ``reference``.

    Args:
        network: compressed.
        reference: the network that it was made from, which stays as it is.
        images: without labels, as the network takes them.
        seed: of what is drawn.

    Raises:
        UsageError: there is no image, or a decomposed layer cannot be calibrated.
    """
    before, after = reference.spec.decompositions, network.spec.decompositions
    named = {layer.name for layer in network.plan.layers}
    earlier = [name for name in after if name in before and name not in named]
    outside = check_calibratable(network, [name for name in after if name not in before])
    plan, spec = reference.plan, reference.spec
    kept = {}
    for group, width in network.spec.widths.items():
        if width < plan.widths[group]:
            channels = list(spec.kept.get(group, range(plan.widths[group])))
            kept[group] = torch.tensor([channels.index(channel) for channel in network.spec.kept[group]])
    layers = calibrate(network.module, reference.module, plan, kept, images, seed=seed, outside=outside)
    skipped = dict.fromkeys(earlier, "beside the channel plan, and decomposed before")
    step = {"images": len(images), "seed": seed, "layers": layers, "skipped": skipped}
    return network.with_step("calibrate", step)


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
