"""``timm.create_model("cpresnet50")``: the classifier, or its feature maps."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from norton_det.builders.backbone import backbone
from norton_det.builders.backbone_networks import Backbone
from norton_det.builders.classifiers import cpresnet50 as classifier
from norton_det.errors import UsageError
from norton_det.models.feature_info import FeatureInfo


class FeatureList(nn.Module):
    """A backbone whose maps are a list, as those of timm's networks with ``features_only=True``.

    Args:
        body: the backbone.
    """

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to feature maps, large ones first."""
        return list(self.body(images).values())

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, strides and modules of the maps."""
        return self.body.feature_info


def cpresnet50(
    *,
    weights: str | Path | WeightsEnum | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    num_classes: int | None = None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a compressed ResNet-50 for timm, see :func:`register_timm`.

    Args:
        weights: what :func:`norton_det.backbone` reads; for the classifier what ``norton_det.cpresnet50`` reads.
        features_only: the feature maps as a list, and what they are as ``feature_info``.
        out_indices: of the maps, as in timm: 0 is the stem.
        num_classes: of the classifier; 0 leaves it out.
        pretrained: must be False: ``weights`` says where they are.
        options: ``norm`` and ``trainable_layers`` of :func:`norton_det.backbone`; what timm passes beside is not used.

    Raises:
        UsageError: a wrong argument.
        DataError: the file is missing, damaged or does not fit.
    """
    if pretrained:
        raise UsageError("pretrained=True: there are no weights to download; expected weights=FILE")
    if features_only:
        chosen = {name: options[name] for name in ("norm", "trainable_layers") if name in options}
        return FeatureList(backbone(weights, out_indices, **chosen))
    net: Any = classifier(weights=weights, num_classes=num_classes or None)
    if num_classes == 0:
        net.fc = nn.Identity()
    assert isinstance(net, nn.Module)
    return net


def register_timm() -> None:
    """Make ``cpresnet50`` known to ``timm.create_model``; twice is harmless.

    Raises:
        UsageError: timm is not installed.

    Example:
        >>> import timm
        >>> from norton_det.adapters import register_timm
        >>> register_timm()
        >>> net = timm.create_model("cpresnet50", features_only=True, out_indices=(2, 3))
        >>> net.feature_info.channels(), net.feature_info.reduction()
        ([512, 1024], [8, 16])
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise UsageError('timm is not installed; expected: pip install "norton-det[timm]"') from None
    if not timm.is_model(cpresnet50.__name__):
        importlib.import_module("timm.models").register_model(cpresnet50)
