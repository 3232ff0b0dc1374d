"""Checks of COCO data for errors that would spoil training or evaluation: annotations, images, results."""

from norton_det.data.coco.checks.annotations import check_annotations
from norton_det.data.coco.checks.findings import Finding, raise_errors
from norton_det.data.coco.checks.images import check_images
from norton_det.data.coco.checks.results import check_results

__all__ = [
    "Finding",
    "check_annotations",
    "check_images",
    "check_results",
    "raise_errors",
]
