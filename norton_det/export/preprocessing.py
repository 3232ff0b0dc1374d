"""What is done to an image before a network takes it, as data."""

from typing import Any

from torch import nn

from norton_det.data.cifar import SIZE
from norton_det.data.image_folder import MEAN, STD
from norton_det.data.imagenet import Preset
from norton_det.models import ARCHITECTURES, classifiers
from norton_det.models.detector_calls import transform_of
from norton_det.spec import Spec

_COMMON: dict[str, Any] = {"channels": "RGB", "range": [0, 1]}
NETWORK, CALLER = "network", "caller"


def preprocessing_of(net: nn.Module, spec: Spec | None) -> dict[str, Any]:
    """Return the preprocessing of a network, as JSON values.

    Returns:
        ``channels`` and ``range`` of the images; ``normalized_by``: "network", which scales and normalises the images
        itself, or "caller"; ``mean`` and ``std`` where they are known; ``min_size`` and ``max_size`` to which a
        detector scales; ``resize`` and ``crop`` of images for a classifier.
    """
    if transform := transform_of(net):
        sizes = {"min_size": list(transform.min_size), "max_size": transform.max_size}
        mean, std = ([float(value) for value in values] for values in (transform.image_mean, transform.image_std))
        return {**_COMMON, "normalized_by": NETWORK, "mean": mean, "std": std, **sizes}
    if spec is None:
        return {**_COMMON, "normalized_by": CALLER}
    given = {**_COMMON, "normalized_by": CALLER, "mean": list(MEAN), "std": list(STD)}
    if spec.arch not in classifiers():
        return given
    if ARCHITECTURES[spec.arch].dataset == "cifar10":
        return {**given, "resize": SIZE, "crop": SIZE}
    preset = Preset()
    return {**given, "resize": preset.val_resize_size, "crop": preset.val_crop_size}


def example_size(net: Any, spec: Spec | None) -> tuple[int, int]:
    """Return the height and width of an example: for a detector its own, in landscape format."""
    if transform := transform_of(net):
        height = transform.min_size[-1]
        return height, min(transform.max_size, 4 * height // 3)
    side = ARCHITECTURES[spec.arch].image_size if spec is not None else _SIDE
    return side, side


_SIDE = 224
