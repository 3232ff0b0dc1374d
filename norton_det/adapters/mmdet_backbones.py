"""The backbone in mmdetection: a type of its registry, for its configurations."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import WeightsEnum

from norton_det.builders.backbone import backbone
from norton_det.errors import UsageError

NAME = "CPResNet50"
"""The type in a configuration."""


def register_mmdet() -> type:
    """Make the type ``CPResNet50`` known to mmdetection's registry of models, and return it; twice is harmless.

    Its arguments are ``weights`` (what :func:`norton_det.backbone` reads), and as of mmdetection's ``ResNet``:
    ``out_indices`` (0 to 3 are the stages), ``frozen_stages`` (-1 trains all, 0 freezes the stem, 1 the first stage as
    well, ...), ``norm_eval``, ``init_cfg``. The ``in_channels`` of the neck are ``norton_det.backbone(file).channels``.
    Images are RGB, of the mean and standard deviation that torchvision's weights have.

    Raises:
        UsageError: mmdetection or mmengine is not installed.

    Example:
        In a configuration of mmdetection, whose ``custom_imports`` name a module that calls ``register_mmdet()``::

            backbone = dict(type="CPResNet50", weights="r50.safetensors", frozen_stages=1)
            neck = dict(type="FPN", in_channels=[230, 460, 614, 2048], out_channels=256, num_outs=5)
    """
    try:
        models = importlib.import_module("mmdet.registry").MODELS
        base = importlib.import_module("mmengine.model").BaseModule
    except ImportError:
        raise UsageError("mmdet is not installed; expected it with mmengine, as its own documents say") from None
    known = models.get(NAME)
    if known is not None:
        return known  # type: ignore[no-any-return]

    class CPResNet50(base):  # type: ignore[misc, valid-type]
        """A backbone of norton_det with mmdetection's interface."""

        def __init__(
            self,
            weights: str | Path | WeightsEnum | None = None,
            out_indices: Sequence[int] = (0, 1, 2, 3),
            frozen_stages: int = -1,
            norm_eval: bool = True,
            init_cfg: Any = None,
        ) -> None:
            super().__init__(init_cfg)
            indices = [1 + index for index in out_indices]
            self.body = backbone(weights, indices, "train", None if weights is None else 4 - frozen_stages)
            self.norm_eval = norm_eval

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            """Map images (N, 3, H, W) to the maps, large ones first."""
            return tuple(self.body(images).values())

        def train(self, mode: bool = True) -> Any:
            """Set the mode; batch norms stay in evaluation mode with ``norm_eval``."""
            super().train(mode)
            for module in self.modules():
                if self.norm_eval and isinstance(module, _BatchNorm):
                    module.eval()
            return self

    models.register_module(name=NAME, module=CPResNet50)
    return CPResNet50
