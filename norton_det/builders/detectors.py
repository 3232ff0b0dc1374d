"""Builders of compressed detectors with torchvision's signature, known to ``torchvision.models.get_model``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import ResNet50_Weights, WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.models.detection.backbone_utils import _validate_trainable_layers
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.checkpoint import load, read_spec
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn import BODY
from norton_det.models.resnet import RESNET50
from norton_det.models.weights import initial_network, load_state, named_weights, read_file
from norton_det.registry import torchvision_builder
from norton_det.spec import Spec
from norton_det.structure.build import build
from norton_det.structure.describe import describe

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
            compression; or torchvision's COCO weights for the dense one.
        weights_backbone: a file of ``norton_det.save`` or a state dict of a ResNet-50, or torchvision's weights. Not
            read where ``weights`` is given, as in torchvision.
        num_classes: background included; None takes it from ``weights``, or else the architecture's default.
        trainable_backbone_layers: 0 to 5, counted from the last stage; without weights all are, with weights 3 unless
            told otherwise.
        norm_layer: of the backbone. None: ``FrozenBatchNorm2d`` when any weights are given, else ``BatchNorm2d``.
        progress: show the progress of a download.
        kwargs: for torchvision's ``FasterRCNN``, ``MaskRCNN`` or ``KeypointRCNN``; and ``anchor_sizes``, a list of
            sizes in pixels for each of the five levels.

    Raises:
        UsageError: unknown weights, a wrong argument, a backbone file of another architecture.
        DataError: a file that is missing, damaged or does not fit.
    """
    trained = weights is not None or weights_backbone is not None
    layers = _trainable_layers(trained, trainable_backbone_layers)
    kwargs["norm_layer"] = norm_layer or ("FrozenBatchNorm2d" if trained else "BatchNorm2d")
    if weights is None:
        net, spec = _on_backbone(arch, weights_backbone, num_classes, progress, kwargs)
    elif named := named_weights(ARCHITECTURES[arch].weights, weights):
        net, spec = _published(arch, named, num_classes, progress, kwargs)
    else:
        net, spec = _from_file(arch, weights, num_classes, kwargs)
    freeze_backbone(net, layers)
    return net, replace(spec, options=describe(net, arch).options)


def _on_backbone(
    arch: str,
    weights: str | Path | WeightsEnum | None,
    num_classes: int | None,
    progress: bool,
    options: dict[str, Any],
) -> tuple[nn.Module, Spec]:
    backbone: nn.Module | None = None
    inner = Spec("resnet50", RESNET50.num_classes)
    if isinstance(weights, (str, Path)) and Path(weights).suffix == ".safetensors":
        backbone, inner = load(weights, deployed=False)
        if inner.arch != "resnet50":
            raise UsageError(f"weights_backbone {weights}: is a {inner.arch}; expected a resnet50")
    elif weights is not None:
        backbone, source = initial_network("resnet50", weights, progress=progress)
        inner = replace(inner, provenance={"source": source})
    spec = Spec(
        arch,
        num_classes or ARCHITECTURES[arch].num_classes,
        ranks={BODY + name: rank for name, rank in inner.ranks.items()},
        widths=inner.widths,
        decomposition=inner.decomposition,
        kept=inner.kept,
        options=options,
        provenance={"backbone": dict(inner.provenance)},
    )
    net = build(spec)
    if backbone is not None:
        state = {k: v for k, v in backbone.state_dict().items() if not k.startswith(f"{RESNET50.classifier}.")}
        load_state(net.get_submodule(BODY.rstrip(".")), state, f"weights_backbone {weights}")
    return net, spec


def _published(
    arch: str, weights: WeightsEnum, num_classes: int | None, progress: bool, options: dict[str, Any]
) -> tuple[nn.Module, Spec]:
    classes = len(weights.meta["categories"])
    if num_classes not in (None, classes):
        raise UsageError(f"num_classes is {num_classes}; {weights} has {classes}")
    spec = Spec(arch, classes, options=options, provenance={"source": str(weights)})
    net = build(spec)
    load_state(net, weights.get_state_dict(progress=progress, check_hash=True), str(weights))
    if weights.name == "COCO_V1":
        # Those were trained with an epsilon of 0: take it out of the variance rather than carry a setting along.
        for module in net.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.running_var -= module.eps
    return net, spec


def _from_file(
    arch: str, path: str | Path | WeightsEnum, num_classes: int | None, options: dict[str, Any]
) -> tuple[nn.Module, Spec]:
    content = read_file(str(path))
    spec = read_spec(str(path), content)
    if spec.arch != arch:
        raise UsageError(f"weights {path}: is a {spec.arch}; expected a {arch}")
    if num_classes not in (None, spec.num_classes):
        raise UsageError(f"num_classes is {num_classes}; {path} has {spec.num_classes}")
    spec = replace(spec, options={**spec.options, **options})
    net = build(spec)
    load_state(net, content.get("model", content), str(path))
    return net, spec


def _trainable_layers(trained: bool, wanted: int | None) -> int:
    try:
        return int(_validate_trainable_layers(trained, wanted, len(_TRAINABLE_ORDER), 3))
    except ValueError as error:
        raise UsageError(f"trainable_backbone_layers: {error}") from None


def freeze_backbone(net: nn.Module, layers: int) -> None:
    """Stop the training of all but the last ``layers`` (0 to 5) of the backbone: stages 4 to 1, then the stem."""
    trainable = (*_TRAINABLE_ORDER[:layers], *(["bn1"] if layers == len(_TRAINABLE_ORDER) else []))
    for name, parameter in net.get_submodule(BODY.rstrip(".")).named_parameters():
        if name.split(".")[0] not in trainable:
            parameter.requires_grad_(False)


# torchvision.models.get_model_weights reads these annotations: no "from __future__ import annotations" in this file.


@torchvision_builder
def fasterrcnn_cpresnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Faster R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    In training mode it maps images (3, H, W) and targets to a dict of losses; in evaluation mode images to a list of
    dicts with boxes (N, 4) as x1, y1, x2, y2, labels (N,), scores (N,).
    """
    return make_detector("fasterrcnn_cpresnet50_fpn", **_arguments(locals()))[0]


@torchvision_builder
def maskrcnn_cpresnet50_fpn(
    *,
    weights: MaskRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Mask R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As Faster R-CNN, with masks (N, 1, H, W) of probabilities as well.
    """
    return make_detector("maskrcnn_cpresnet50_fpn", **_arguments(locals()))[0]


@torchvision_builder
def keypointrcnn_cpresnet50_fpn(
    *,
    weights: KeypointRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Keypoint R-CNN with FPN on a compressed ResNet-50; arguments and errors of :func:`make_detector`.

    As Faster R-CNN, with keypoints (N, K, 3) as x, y, visibility and keypoints_scores (N, K) as well;
    ``num_keypoints=K``, 17 if not given.
    """
    return make_detector("keypointrcnn_cpresnet50_fpn", **_arguments(locals()))[0]


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    kwargs = given.pop("kwargs")
    return {**given, **kwargs}
