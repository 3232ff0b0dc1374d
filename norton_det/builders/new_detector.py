"""A new detector: its compression and weights from a file, on a backbone, or published by torchvision."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.backbone_utils import _validate_trainable_layers
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.builders.backbone_source import moved, read_backbone
from norton_det.builders.fine_tuning import STAGES, fine_tuning_of, freeze_backbone
from norton_det.builders.new_classes import with_background, with_classes
from norton_det.checkpoint import has_spec, read_network
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.rcnn_plan import BODY
from norton_det.models.resnet import RESNET50
from norton_det.models.weights import initial_state, load_state, names_of
from norton_det.spec import Spec
from norton_det.structure.build import build_network
from norton_det.structure.describe import described
from norton_det.structure.network import Network

logger = logging.getLogger(__name__)
_LAST_OF_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.bias"


def make_detector(
    arch: str,
    *,
    weights: str | Path | WeightsEnum | None = None,
    weights_backbone: str | Path | WeightsEnum | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    keypoints: Sequence[str] | None = None,
    trainable_backbone_layers: int | None = None,
    norm_layer: str | Callable[..., nn.Module] | None = None,
    to_compress: bool = False,
    progress: bool = True,
    **kwargs: Any,
) -> tuple[nn.Module, Spec]:
    """Return a detector and its spec; the builders below return the detector alone.

    Args:
        arch: registered name.
        weights: of the whole detector: a file of ``norton_det.save`` or a training checkpoint, whose spec decides the
            compression; or, for the dense one, torchvision's COCO weights or a state-dict file.
        weights_backbone: what :func:`norton_det.backbone` reads: a file of ``norton_det.save`` or a state dict of a
            ResNet-50, with its classifier or without, of a backbone, or of a detector, whose backbone is taken out
            with its feature pyramid; or torchvision's weights. Not read where ``weights`` is given, as in torchvision.
        num_classes: background included; None takes it from ``classes`` or ``weights``, or else the architecture's
            default.
        classes: names of the classes, with or without the background. Where those of ``weights`` are others, the heads
            are made for these, see :func:`norton_det.builders.with_classes`.
        keypoints: names of the keypoints, likewise; with ``classes``.
        trainable_backbone_layers: 0 to 5, counted from the last stage; without weights all are, by default 3 with
            weights, and 5 with those that were compressed and not trained since.
        norm_layer: of the backbone. None: ``FrozenBatchNorm2d`` when any weights are given, unless they were compressed
            and neither calibrated nor trained since; else ``BatchNorm2d``, which is all that the second version's
            detectors use, in FPN and heads as well.
        to_compress: dense weights are compressed next: what is trainable is as with compressed ones.
        progress: show the progress of a download.
        kwargs: for torchvision's ``FasterRCNN``, ``MaskRCNN`` or ``KeypointRCNN``; and ``anchor_sizes``, a list of
            sizes in pixels for each of the five levels.

    Raises:
        UsageError: unknown weights, a wrong argument, a backbone file of another architecture.
        DataError: a file that is missing, damaged or does not fit.
    """
    architecture = ARCHITECTURES[arch]
    if classes is not None:
        classes = with_background(classes)
        if num_classes not in (None, len(classes)):
            raise UsageError(f"num_classes is {num_classes}; {len(classes)} classes are named, the background included")
    if weights is not None:
        given = _detector(architecture, weights, num_classes if classes is None else None, progress)
    else:
        number = len(classes) if classes is not None else num_classes or architecture.num_classes
        given = _backbone(architecture, weights_backbone, number, progress)
        kwargs |= {"num_keypoints": len(keypoints)} if keypoints else {}
    trained = weights is not None or weights_backbone is not None
    rule = fine_tuning_of(given.spec, architecture, trained=trained, to_compress=to_compress)
    layers = trainable_layers(trained, trainable_backbone_layers, rule.layers)
    options = {**given.spec.options, **rule.options, **kwargs}
    options |= {} if norm_layer is None else {"norm_layer": norm_layer}
    spec = replace(given.spec, options=options, attributes=_fitting(given.spec.attributes, options))
    if trained:  # what does not fit takes no memory
        part = build_network(spec, architecture, "meta").module.get_submodule(given.part)
        load_state(part, given.state, given.name)
    network = build_network(spec, architecture)
    if trained:
        load_state(network.module.get_submodule(given.part), given.state, given.name)
    if rule.reason and None in (norm_layer, trainable_backbone_layers):
        norms = network.spec.options.get("norm_layer", "BatchNorm2d")
        text = "%s: %s: norms of the backbone are %s, %d of %d stages are trainable"
        logger.info(text, given.name, rule.reason, norms, layers, STAGES)
    return _finished(network, layers, classes, keypoints, given)


@dataclass(frozen=True)
class _Given:
    """The weights that are given: their tensors, for which part of the detector, and its spec."""

    spec: Spec
    state: Mapping[str, Tensor]
    name: str
    part: str = ""


def _finished(
    network: Network, layers: int, classes: Sequence[str] | None, keypoints: Sequence[str] | None, given: _Given
) -> tuple[nn.Module, Spec]:
    """Return the detector with its stages frozen, for the classes that are named, and its spec."""
    freeze_backbone(network.module, layers)
    found = described(network.module, network.architecture).spec
    spec = replace(network.spec, options=found.options, attributes=found.attributes)
    if classes is None:
        return network.module, spec
    if given.part:  # only the backbone has weights
        return network.module, replace(spec, classes=tuple(classes), keypoints=tuple(keypoints or ()))
    return with_classes(network.module, spec, classes, keypoints, source=given.name)


def _backbone(
    architecture: Architecture, weights: str | Path | WeightsEnum | None, num_classes: int, progress: bool
) -> _Given:
    source, place = read_backbone(weights, progress=progress).for_detector(architecture)
    spec = moved(source.spec, architecture, "", place, {})
    spec = replace(spec, num_classes=num_classes, provenance={"backbone": dict(source.spec.provenance)})
    return _Given(spec, source.state, f"weights_backbone {weights}", place.rstrip("."))


def _detector(
    architecture: Architecture, weights: str | Path | WeightsEnum, num_classes: int | None, progress: bool
) -> _Given:
    if isinstance(weights, (str, Path)) and has_spec(weights):
        spec, state = read_network(weights)
        if spec.arch != architecture.name:
            raise UsageError(f"weights {weights}: is a {spec.arch}; expected a {architecture.name}")
    else:
        state, source = initial_state(architecture, weights, progress=progress)
        classifier = state.get(f"{architecture.classifier}.weight")
        number = num_classes or architecture.num_classes if classifier is None else len(classifier)
        points = state.get(_LAST_OF_KEYPOINTS)
        options = {} if points is None else {"num_keypoints": len(points)}
        names = names_of(architecture, weights)
        spec = Spec(architecture.name, number, options=options, provenance={"source": source}, **names)
    if num_classes not in (None, spec.num_classes):
        raise UsageError(
            f"num_classes is {num_classes}; {weights} has {spec.num_classes}: expected the same, or names (classes)"
        )
    return _Given(spec, state, str(weights))


def _fitting(attributes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded attributes of a detector that these options leave as they were.

    Frozen norms have no momentum. Of a ResNet-50, the pooling and the classifier are no part of a backbone. What is
    given as a module (``box_roi_pool=...``) is taken as it is.
    """
    frozen = options.get("norm_layer") in ("FrozenBatchNorm2d", FrozenBatchNorm2d)
    gone = tuple(BODY + name for name in ("avgpool.", f"{RESNET50.classifier}."))
    given = tuple(f"{part}.{name}." for name in options for part in ("roi_heads", "rpn"))
    given += (
        ("rpn.head.", "rpn.anchor_generator.") if "rpn_head" in options or "rpn_anchor_generator" in options else ()
    )
    return {
        path: value
        for path, value in attributes.items()
        if not (frozen and path.endswith(".momentum"))
        and not path.startswith((*gone, *given))
        and path.removeprefix(BODY).count(".")  # of a layer, not of the ResNet itself
    }


def trainable_layers(trained: bool, number: int | None, default: int = 3) -> int:
    """Return how many of the last parts of a ResNet-50 are trained: ``default`` of 5 with weights, else all.

    Raises:
        UsageError: a number outside 0 to 5.
    """
    try:
        return int(_validate_trainable_layers(trained, number, STAGES, default))
    except ValueError as error:
        raise UsageError(f"trainable_backbone_layers: {error}") from None
