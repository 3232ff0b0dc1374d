"""Calibration of a compressed network, as a step of compression."""

from dataclasses import replace

import torch
from torch import nn

from norton_det.calibration.layerwise import Images, calibrate
from norton_det.spec import Spec
from norton_det.structure.settings import current_plan


def _calibrated(net: nn.Module, spec: Spec, reference: nn.Module, before: Spec, images: Images, seed: int) -> Spec:
    """Calibrate ``net`` in place, and return its spec with a word on it."""
    plan = current_plan(before)
    kept = {}
    for group, width in spec.widths.items():
        if width < plan.widths[group]:
            own = list(before.kept.get(group, range(plan.widths[group])))
            kept[group] = torch.tensor([own.index(channel) for channel in spec.kept[group]])
    layers = calibrate(net, reference, plan, kept, images, seed=seed)
    step = {"images": len(images), "seed": seed, "layers": layers}
    return replace(spec, provenance={**spec.provenance, "calibrate": step})
