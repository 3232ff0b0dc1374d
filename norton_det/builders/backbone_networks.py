"""ResNet-50 as a backbone, with a feature pyramid and without: architectures like the others, with files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.channels.plan import ChannelPlan
from norton_det.checkpoint import save
from norton_det.deployment.record import deployment_of
from norton_det.errors import UsageError
from norton_det.models import Architecture, RateEntry, register_architecture
from norton_det.models.architecture import Scope
from norton_det.models.feature_maps import FeatureMaps, PyramidMaps, StageMaps
from norton_det.models.rcnn_plan import WIDTH, rcnn_plan
from norton_det.models.resnet import RESNET50, STAGES, norm_class, refuse_weights
from norton_det.models.tasks import FeatureExtraction
from norton_det.structure.describe import describe

PYRAMID_BODY = "body."
"""Where the ResNet-50 sits in a backbone with a feature pyramid."""
IN_DETECTOR = "backbone."
"""Where that sits in a detector."""


class Backbone(FeatureMaps):
    """What :func:`norton_det.backbone` returns: feature maps, and what others ask about them; it writes its file."""

    def save(self, path: str | Path) -> None:
        """Write a file that ``norton_det.backbone``, ``weights_backbone=`` and ``norton_det.load`` read.

        Args:
            path: of a safetensors file; its folder must exist.

        Raises:
            UsageError: the backbone was changed in a way that no file holds; the message names it.

        Example:
            >>> import tempfile
            >>> import norton_det as nd
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     nd.backbone(None, out_indices=(2, 4)).save(f"{folder}/b.safetensors")
            ...     nd.backbone(f"{folder}/b.safetensors").channels
            (256, 512, 1024, 2048)
        """
        spec = self.spec
        if spec is None or deployment_of(self) is None:
            found = describe(self, self.architecture)
            if spec is not None and spec.widths == found.widths:
                found = replace(found, kept=spec.kept, provenance=spec.provenance)
            spec = found
        save(self, spec, path)


class ResNetBackbone(Backbone, StageMaps):
    """The stem and the stages of a ResNet-50."""


class PyramidBackbone(Backbone, PyramidMaps):
    """A ResNet-50 with a feature pyramid."""


def _backbone(
    version: int,
    *,
    num_classes: int = 0,
    norm_layer: str = "BatchNorm2d",
    out_indices: Sequence[int] = (1, 2, 3, 4),
    **options: Any,
) -> Backbone:
    """Return the dense network; version 0 is without a pyramid, 1 and 2 are those of torchvision's detectors."""
    if num_classes:
        raise UsageError(f"num_classes is {num_classes}; expected 0, for a backbone has no classifier")
    refuse_weights(options)
    resnet = resnet50(norm_layer=norm_class(norm_layer), **options)
    if version == 0:
        return ResNetBackbone(resnet, out_indices)
    widths = [RESNET50.plan.widths[stage] for stage in STAGES]
    return PyramidBackbone(resnet, out_indices, widths, WIDTH, nn.BatchNorm2d if version == 2 else None)


def options_of(net: Any) -> dict[str, Any]:
    """Return the options that rebuild a backbone, those that are not the default ones."""
    norms: dict[str, Any] = RESNET50.options_of(net.stages) if RESNET50.options_of else {}
    return norms | ({} if net.out_indices == (1, 2, 3, 4) else {"out_indices": list(net.out_indices)})


def _plan(version: int) -> ChannelPlan:
    """Return the part of a detector's plan that is in its backbone."""
    whole = rcnn_plan(("bbox",), version or 1)
    root = IN_DETECTOR if version else IN_DETECTOR + PYRAMID_BODY
    layers = tuple(
        replace(layer, name=f"{layer.name}.".removeprefix(root).rstrip("."))
        for layer in whole.layers
        if f"{layer.name}.".startswith(root)
    )
    groups = {group for layer in layers for group in (*layer.reads, layer.writes)}
    widths = {group: width for group, width in whole.widths.items() if group in groups}
    return ChannelPlan(widths, layers, whole.separate & groups)


def _register(name: str, version: int) -> Architecture:
    plan, body = _plan(version), PYRAMID_BODY if version else ""
    further = tuple(RateEntry(group, (group,)) for group in plan.widths if group not in RESNET50.plan.widths)
    rates = RESNET50.rate_order
    scopes = {"backbone": Scope(body, rates), "detector": Scope("", (*rates, *further))}
    return register_architecture(
        Architecture(
            name,
            partial(_backbone, version),
            plan,
            rates,
            num_classes=0,
            image_size=RESNET50.image_size,
            classifier="",
            dataset=RESNET50.dataset,
            task=FeatureExtraction(),
            kept_dense={body + layer: reason for layer, reason in RESNET50.kept_dense.items()},
            options_of=options_of,
            trained_options={"norm_layer": FrozenBatchNorm2d.__name__},
            scopes=scopes if version else {},
            within=body,
        )
    )


BACKBONES = {
    0: _register("resnet50_backbone", 0),
    1: _register("resnet50_fpn_backbone", 1),
    2: _register("resnet50_fpn_v2_backbone", 2),
}
"""The architectures by the version of their pyramid; 0 is without one."""
