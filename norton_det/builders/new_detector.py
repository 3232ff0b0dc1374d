"""A new detector: its compression and weights from a file, on a backbone, or published by torchvision."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.backbone_utils import _validate_trainable_layers
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.builders.backbone_source import moved, read_backbone
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

_TRAINABLE_ORDER = ("layer4", "layer3", "layer2", "layer1", "conv1")


def make_detector(
    arch: str,
    *,
    weights: str | Path | WeightsEnum | None = None,
    weights_backbone: str | Path | WeightsEnum | None = None,
    num_classes: int | None = None,
    trainable_backbone_layers: int | None = None,
    norm_layer: str | Callable[..., nn.Module] | None = None,
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
        num_classes: background included; None takes it from ``weights``, or else the architecture's default.
        trainable_backbone_layers: 0 to 5, counted from the last stage; without weights all are, by default 3 with
            weights.
        norm_layer: of the backbone. None: ``FrozenBatchNorm2d`` when any weights are given, else ``BatchNorm2d``, which
            is all that the second version's detectors use, in FPN and heads as well.
        progress: show the progress of a download.
        kwargs: for torchvision's ``FasterRCNN``, ``MaskRCNN`` or ``KeypointRCNN``; and ``anchor_sizes``, a list of
            sizes in pixels for each of the five levels.

    Raises:
        UsageError: unknown weights, a wrong argument, a backbone file of another architecture.
        DataError: a file that is missing, damaged or does not fit.
    """
    trained = weights is not None or weights_backbone is not None
    layers = trainable_layers(trained, trainable_backbone_layers)
    architecture = ARCHITECTURES[arch]
    if norm_layer is not None:
        kwargs["norm_layer"] = norm_layer
    elif trained:
        kwargs = {**architecture.trained_options, **kwargs}
    if weights is None:
        network = _on_backbone(architecture, weights_backbone, num_classes, progress, kwargs)
    elif isinstance(weights, (str, Path)) and has_spec(weights):
        network = _from_file(architecture, weights, num_classes, kwargs)
    else:
        network = _dense(architecture, weights, num_classes, progress, kwargs)
    freeze_backbone(network.module, layers)
    found = described(network.module, architecture).spec
    return network.module, replace(network.spec, options=found.options, attributes=found.attributes)


def _on_backbone(
    architecture: Architecture,
    weights: str | Path | WeightsEnum | None,
    num_classes: int | None,
    progress: bool,
    options: dict[str, Any],
) -> Network:
    source, place = read_backbone(weights, progress=progress).for_detector(architecture)
    spec = moved(source.spec, architecture, "", place, options)
    spec = replace(
        spec,
        num_classes=num_classes or architecture.num_classes,
        attributes=_fitting(spec.attributes, options),
        provenance={"backbone": dict(source.spec.provenance)},
    )
    network = build_network(spec, architecture)
    if weights is not None:
        load_state(network.module.get_submodule(place.rstrip(".")), source.state, f"weights_backbone {weights}")
    return network


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


def _dense(
    architecture: Architecture,
    weights: str | Path | WeightsEnum,
    num_classes: int | None,
    progress: bool,
    options: dict[str, Any],
) -> Network:
    state, source = initial_state(architecture, weights, progress=progress)
    classifier = state.get(f"{architecture.classifier}.weight")
    classes = num_classes or architecture.num_classes if classifier is None else len(classifier)
    if num_classes not in (None, classes):
        raise UsageError(f"num_classes is {num_classes}; {weights} has {classes}")
    names = names_of(architecture, weights)
    spec = Spec(architecture.name, classes, options=options, provenance={"source": source}, **names)
    network = build_network(spec, architecture)
    load_state(network.module, state, str(weights))
    return network


def _from_file(
    architecture: Architecture, path: str | Path, num_classes: int | None, options: dict[str, Any]
) -> Network:
    spec, tensors = read_network(path)
    if spec.arch != architecture.name:
        raise UsageError(f"weights {path}: is a {spec.arch}; expected a {architecture.name}")
    if num_classes not in (None, spec.num_classes):
        raise UsageError(f"num_classes is {num_classes}; {path} has {spec.num_classes}")
    options = {**spec.options, **options}
    spec = replace(spec, options=options, attributes=_fitting(spec.attributes, options))
    network = build_network(spec, architecture)
    load_state(network.module, tensors, str(path))
    return network


def trainable_layers(trained: bool, number: int | None) -> int:
    """Return how many of the last parts of a ResNet-50 are trained: 3 of 5 with weights, else all, if not told.

    Raises:
        UsageError: a number outside 0 to 5.
    """
    try:
        return int(_validate_trainable_layers(trained, number, len(_TRAINABLE_ORDER), 3))
    except ValueError as error:
        raise UsageError(f"trainable_backbone_layers: {error}") from None


def freeze_backbone(net: nn.Module, layers: int) -> None:
    """Stop the training of all but the last ``layers`` (0 to 5) of the backbone: stages 4 to 1, then the stem."""
    trainable = (*_TRAINABLE_ORDER[:layers], *(["bn1"] if layers == len(_TRAINABLE_ORDER) else []))
    for name, parameter in net.get_submodule(BODY.rstrip(".")).named_parameters():
        if name.split(".")[0] not in trainable:
            parameter.requires_grad_(False)
