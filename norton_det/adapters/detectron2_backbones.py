"""The backbone in detectron2: its class of backbones, its names of the maps, and its registry."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models import WeightsEnum

from norton_det.builders.backbone import backbone
from norton_det.errors import UsageError

STAGES = ("res2", "res3", "res4", "res5")
"""Detectron2's names of the four stages; the maps of a pyramid are "p2" to "p5", and "p6"."""


def detectron2_backbone(
    weights: str | Path | WeightsEnum | None,
    out_features: Sequence[str] = STAGES,
    *,
    fpn: bool = False,
    freeze_at: int | None = None,
    **options: Any,
) -> Any:
    """Return the backbone of a file as a ``Backbone`` of detectron2, for its configurations in Python as well.

    Images are RGB, of the mean and standard deviation that torchvision's weights have.

    Args:
        weights: what :func:`norton_det.backbone` reads.
        out_features: the stages, as "res2" to "res5": those that are returned, or that the pyramid is built on.
        fpn: with the pyramid of the file, or a new one; its maps are "p2" to "p5" of these stages, and one more.
        freeze_at: 0 trains all, 1 freezes the stem, 2 the first stage as well, up to 5; None: as of ``backbone``.
        options: further ones of :func:`norton_det.backbone`.

    Raises:
        UsageError: detectron2 is not installed; a wrong argument.
        DataError: the file is missing, damaged or does not fit.

    Example:
        As in detectron2's documents, with a file in place of the name of a network::

            from detectron2.config import LazyCall as L
            model.backbone.bottom_up = L(detectron2_backbone)(weights="r50.safetensors", freeze_at=2)
    """
    if unknown := [name for name in out_features if name not in STAGES]:
        raise UsageError(f"out_features has {unknown[0]!r}; expected some of: {', '.join(STAGES)}")
    base, shape = _imported("detectron2.modeling").Backbone, _imported("detectron2.layers").ShapeSpec
    indices = [1 + STAGES.index(name) for name in out_features]
    if freeze_at is not None:
        options["trainable_layers"] = 5 - freeze_at
    body = backbone(weights, indices, fpn=fpn, **options)
    levels = [f"p{1 + index}" for index in indices]
    names = [*levels, f"p{2 + indices[-1]}"] if fpn else list(out_features)

    class Detectron2Backbone(base):  # type: ignore[misc, valid-type]
        """A backbone of norton_det with detectron2's interface."""

        def __init__(self) -> None:
            super().__init__()
            self.body: Any = body

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            """Map images (N, 3, H, W) to maps by detectron2's names."""
            return dict(zip(names, self.body(images).values(), strict=True))

        def output_shape(self) -> dict[str, Any]:
            """Return channels and stride of each map."""
            shapes = zip(self.body.channels, self.body.strides, strict=True)
            return {
                name: shape(channels=channels, stride=stride)
                for name, (channels, stride) in zip(names, shapes, strict=True)
            }

        @property
        def size_divisibility(self) -> int:
            """The number that height and width of images are multiples of, where a pyramid adds maps of two sizes."""
            return int(self.body.stages.strides[-1]) if fpn else 0

    return Detectron2Backbone()


def register_detectron2() -> None:
    """Make ``build_cpresnet50_backbone`` and ``build_cpresnet50_fpn_backbone`` known to detectron2; twice is harmless.

    They read ``MODEL.CPRESNET50.WEIGHTS`` (a file), ``MODEL.RESNETS.OUT_FEATURES`` or ``MODEL.FPN.IN_FEATURES``, and
    ``MODEL.BACKBONE.FREEZE_AT`` of a configuration.

    Raises:
        UsageError: detectron2 is not installed.
    """
    registry = _imported("detectron2.modeling").BACKBONE_REGISTRY

    def build_cpresnet50_backbone(cfg: Any, input_shape: Any) -> Any:
        """Return the stages."""
        model = cfg.MODEL
        return detectron2_backbone(
            model.CPRESNET50.WEIGHTS, model.RESNETS.OUT_FEATURES, freeze_at=model.BACKBONE.FREEZE_AT
        )

    def build_cpresnet50_fpn_backbone(cfg: Any, input_shape: Any) -> Any:
        """Return the maps of the pyramid."""
        model = cfg.MODEL
        options = {"fpn": True, "freeze_at": model.BACKBONE.FREEZE_AT}
        return detectron2_backbone(model.CPRESNET50.WEIGHTS, model.FPN.IN_FEATURES, **options)

    for build in (build_cpresnet50_backbone, build_cpresnet50_fpn_backbone):
        if build.__name__ not in registry:
            registry.register(build)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"{name.split('.')[0]} is not installed; expected it, as its own documents say") from None
