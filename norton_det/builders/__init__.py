"""Detectors on a compressed backbone."""

from norton_det.builders.detectors import (
    fasterrcnn_cpresnet50_fpn,
    freeze_backbone,
    keypointrcnn_cpresnet50_fpn,
    make_detector,
    maskrcnn_cpresnet50_fpn,
)

__all__ = [
    "fasterrcnn_cpresnet50_fpn",
    "freeze_backbone",
    "keypointrcnn_cpresnet50_fpn",
    "make_detector",
    "maskrcnn_cpresnet50_fpn",
]
