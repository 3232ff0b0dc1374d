"""What is trainable in a new detector, by default: torchvision's rule, and another one for a compressed backbone.

torchvision freezes the batch norms and the first stages of a pretrained backbone: its features are good, and the
statistics of few images would be worse than those that it has. After a compression without calibration neither holds:
the statistics are those of features that are gone. After a calibration the statistics are right, but the layers of all
stages are approximations that training can still improve.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from norton_det.models import Architecture
from norton_det.models.rcnn_plan import BODY
from norton_det.spec import Spec
from norton_det.structure.history import CALIBRATED, COMPRESSED, untrained_since

_FROM_LAST = ("layer4", "layer3", "layer2", "layer1", "conv1")
STAGES = len(_FROM_LAST)
"""Parts of a backbone that can be frozen, the stem included."""
_PRETRAINED = 3  # trainable stages, as in torchvision


class FineTuning(NamedTuple):
    """Options of the builder, the number of trainable stages from the last one, and why, if it is not torchvision's."""

    options: Mapping[str, Any]
    layers: int
    reason: str = ""


def fine_tuning_of(
    spec: Spec, architecture: Architecture, *, trained: bool = True, to_compress: bool = False
) -> FineTuning:
    """Return what is trainable by default in a new detector.

    Args:
        spec: of the detector, with the history of its weights.
        architecture: of the detector.
        trained: it has weights, if only of its backbone.
        to_compress: it is compressed next, if it is not yet.

    Example:
        >>> from norton_det import Spec
        >>> from norton_det.builders.fine_tuning import fine_tuning_of
        >>> from norton_det.models import ARCHITECTURES
        >>> name = "fasterrcnn_cpresnet50_fpn"
        >>> fine_tuning_of(Spec(name, 91, provenance={"prune": {}}), ARCHITECTURES[name])[:2]
        ({'norm_layer': 'BatchNorm2d'}, 5)
    """
    if not trained:
        return FineTuning({}, STAGES)
    state = untrained_since(spec)
    if to_compress and not spec.decompositions and not spec.widths:
        state = COMPRESSED
    reason = f"{state}, not trained since"
    if state == COMPRESSED:
        return FineTuning({"norm_layer": nn.BatchNorm2d.__name__}, STAGES, reason)
    if state == CALIBRATED:
        return FineTuning(architecture.trained_options, STAGES, reason)
    return FineTuning(architecture.trained_options, _PRETRAINED)


def freeze_backbone(net: nn.Module, layers: int) -> None:
    """Stop the training of all but the last ``layers`` (0 to 5) of the backbone: stages 4 to 1, then the stem."""
    trainable = (*_FROM_LAST[:layers], *(["bn1"] if layers == STAGES else []))
    for name, parameter in net.get_submodule(BODY.rstrip(".")).named_parameters():
        if name.split(".")[0] not in trainable:
            parameter.requires_grad_(False)


def trainable_stages(net: nn.Module) -> int:
    """Return the number of the backbone's stages that are trainable, the argument of :func:`freeze_backbone`.

    Example:
        >>> import norton_det as nd
        >>> from norton_det.builders.fine_tuning import trainable_stages
        >>> trainable_stages(nd.fasterrcnn_cpresnet50_fpn())
        5
    """
    body = net.get_submodule(BODY.rstrip("."))
    return sum(any(p.requires_grad for p in body.get_submodule(stage).parameters()) for stage in _FROM_LAST)
