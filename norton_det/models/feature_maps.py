"""ResNet-50 as a backbone of other networks: its feature maps by name, with a feature pyramid or without."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from norton_det.errors import UsageError
from norton_det.models.feature_info import FeatureInfo, ShapeSpec
from norton_det.runtime.modes import evaluating
from norton_det.spec import Spec

MAPS = ("relu", "layer1", "layer2", "layer3", "layer4")
"""The modules of a ResNet that return a feature map, by index: stem and stages."""
TRAINABLE_ORDER = ("layer4", "layer3", "layer2", "layer1", "conv1")
"""In which the parts of a ResNet become trainable; the stem's norm comes with all of them."""
_PROBED = 64  # pixels: the strides of all maps divide it


class FeatureMaps(nn.Module):
    """A network from images (N, 3, H, W) to an ordered dict of feature maps (N, C, H / stride, W / stride).

    Attributes:
        out_indices: which of the maps are returned, 0 to 4: stem and stages. Their keys are "0", "1", ... in order.
        spec: what the network is, with its history; None if it is not known.
        frozen: names of the parts of the ResNet that are not trained; their norms stay in evaluation mode.
    """

    if TYPE_CHECKING:  # TorchScript, which reads annotations, does not know these
        out_indices: tuple[int, ...]
        spec: Spec | None
        frozen: tuple[str, ...]
    spec = None
    frozen = ()
    __jit_unused_properties__ = (
        *("architecture", "stages", "groups", "channels", "strides", "out_channels", "feature_info"),
    )

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The registered name of its architecture."""

    @property
    @abstractmethod
    def stages(self) -> nn.Module:
        """What holds the stem and the stages of the ResNet."""

    @property
    @abstractmethod
    def groups(self) -> tuple[str, ...]:
        """The channel group of each map that is returned."""

    @property
    @abstractmethod
    def feature_info(self) -> FeatureInfo:
        """The maps as timm describes them: ``channels()``, ``reduction()``, ``module_name()``."""

    @property
    def channels(self) -> tuple[int, ...]:
        """The number of channels of each map that is returned."""
        return tuple(self.feature_info.channels())

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each map that is returned: pixels of the image from one position to the next."""
        return tuple(self.feature_info.reduction())

    def keys_of_maps(self) -> list[str]:
        """Return the keys of the maps, in order."""
        return [str(i) for i in range(len(self.out_indices))]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map by its key, as detectron2's backbones do."""
        shapes = zip(self.keys_of_maps(), self.channels, self.strides, strict=True)
        return {key: ShapeSpec(channels, stride=stride) for key, channels, stride in shapes}

    def freeze(self, trainable_layers: int = 0) -> Self:
        """Train only the last ``trainable_layers`` (0 to 5) of the ResNet: stages 4 to 1, then the stem.

        The parameters of the others get no gradients, and their batch norms stay in evaluation mode. A feature pyramid
        is trained in any case. Stages behind the last map that is returned are never trained.

        Raises:
            UsageError: a number outside 0 to 5.
        """
        if trainable_layers not in range(len(TRAINABLE_ORDER) + 1):
            raise UsageError(f"trainable_layers is {trainable_layers}; expected 0 to {len(TRAINABLE_ORDER)}")
        trained = {*TRAINABLE_ORDER[:trainable_layers], *(["bn1"] if trainable_layers == len(TRAINABLE_ORDER) else [])}
        trained -= set(MAPS[self.out_indices[-1] + 1 :])
        parts = [name for name, part in self.stages.named_children() if next(part.parameters(), None) is not None]
        for name in parts:
            self.stages.get_submodule(name).requires_grad_(name in trained)
        norms = [name for name, part in self.stages.named_children() if next(part.buffers(), None) is not None]
        self.frozen = tuple(name for name in dict.fromkeys([*parts, *norms]) if name not in trained)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.stages.get_submodule(name).eval()
        return self


class StageMaps(FeatureMaps):
    """The stem and the stages of a ResNet-50, under its own names.

    Args:
        resnet: whose modules these are, but for the classifier.
        out_indices: which maps are returned: 0 is the stem, 1 to 4 are the stages.

    Raises:
        UsageError: indices that are not ascending numbers from 0 to 4.
    """

    return_layers: dict[str, str]  # TorchScript needs it

    def __init__(self, resnet: ResNet, out_indices: Sequence[int] = (1, 2, 3, 4)) -> None:
        super().__init__()
        self.out_indices = _checked(out_indices, range(len(MAPS)))
        self.return_layers = {MAPS[index]: str(i) for i, index in enumerate(self.out_indices)}
        for name, part in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)
        self.freeze(len(TRAINABLE_ORDER))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to feature maps; stages behind the last one that is asked for do not run."""
        maps: dict[str, Tensor] = OrderedDict()
        for name, part in self.named_children():
            if len(maps) < len(self.return_layers):
                images = part(images)
                if name in self.return_layers:
                    maps[self.return_layers[name]] = images
        return maps

    @property
    def architecture(self) -> str:
        """The registered name of its architecture."""
        return "resnet50_backbone"

    @property
    def stages(self) -> "StageMaps":
        """Itself."""
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """The channel group of each map: "stem", or the stage's name."""
        return tuple("stem" if index == 0 else MAPS[index] for index in self.out_indices)

    @property
    def out_channels(self) -> int | tuple[int, ...]:
        """The number of channels of the only map, or of each: torchvision's detectors take one number."""
        return self.channels[0] if len(self.out_indices) == 1 else self.channels

    @property
    def feature_info(self) -> FeatureInfo:
        """All five maps as timm describes them, read off a small image that is run."""
        info: list[dict[str, Any]] = []
        like = next(self.parameters())
        with torch.no_grad(), evaluating(self):
            maps = torch.zeros(1, getattr(self.conv1, "in_channels", 3), _PROBED, _PROBED).to(like)
            for name, part in self.named_children():
                maps = part(maps)
                if name in MAPS:
                    info.append({"num_chs": maps.shape[1], "reduction": _PROBED // maps.shape[2], "module": name})
        return FeatureInfo(info, self.out_indices)


class Pyramid(FeaturePyramidNetwork):
    """A feature pyramid over some of the four stages, with the parameters for all of them under their usual names.

    Args:
        widths: channels of the four stages.
        out_channels: of the pyramid.
        levels: the stages that it is given, numbers from 0 to 3.
        norm_layer: of norms after its convolutions, as in the second version of torchvision's detectors.
    """

    def __init__(
        self,
        widths: list[int],
        out_channels: int,
        levels: Sequence[int],
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(widths, out_channels, LastLevelMaxPool(), norm_layer)
        self.levels = tuple(levels)
        for level in {*range(len(widths))} - {*levels}:
            self.inner_blocks[level].requires_grad_(False)
            self.layer_blocks[level].requires_grad_(False)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map the stages to the pyramid: the same keys, and "pool", which is half as large as the last one."""
        names, maps = list(x.keys()), list(x.values())
        inner = self.get_result_from_inner_blocks(maps[-1], self.levels[-1])
        results = [self.get_result_from_layer_blocks(inner, self.levels[-1])]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.get_result_from_inner_blocks(maps[i], self.levels[i])
            inner = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.get_result_from_layer_blocks(inner, self.levels[i]))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict([(name, result) for name, result in zip(names, results)])  # noqa: B905  TorchScript


class PyramidMaps(FeatureMaps, BackboneWithFPN):
    """A ResNet-50 with a feature pyramid, under the names of torchvision's ``BackboneWithFPN``.

    Args:
        resnet: dense, with its full widths.
        out_indices: the stages that the pyramid is built on: numbers from 1 to 4.
        widths: channels of the four stages.
        out_channels: of the pyramid.
        norm_layer: of norms in the pyramid.

    Raises:
        UsageError: indices that are not ascending numbers from 1 to 4.
    """

    if TYPE_CHECKING:
        out_channels: int

    def __init__(
        self,
        resnet: ResNet,
        out_indices: Sequence[int],
        widths: list[int],
        out_channels: int,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.out_indices = _checked(out_indices, range(1, len(MAPS)))
        self.body = StageMaps(resnet, self.out_indices)
        self.fpn = Pyramid(widths, out_channels, [index - 1 for index in self.out_indices], norm_layer)
        self.out_channels = out_channels
        self.freeze(len(TRAINABLE_ORDER))

    @property
    def architecture(self) -> str:
        """The registered name of its architecture: there is one with norms in the pyramid and one without."""
        block: Any = self.fpn.inner_blocks[0]
        return "resnet50_fpn_backbone" if len(block) == 1 else "resnet50_fpn_v2_backbone"

    @property
    def stages(self) -> StageMaps:
        """The ResNet."""
        return self.body

    @property
    def groups(self) -> tuple[str, ...]:
        """The channel group of each map: that of the pyramid."""
        return ("fpn",) * len(self.keys_of_maps())

    def keys_of_maps(self) -> list[str]:
        """Return the keys of the maps, in order; the last one is "pool"."""
        return [*super().keys_of_maps(), "pool"]

    @property
    def feature_info(self) -> FeatureInfo:
        """The maps that are returned as timm describes them."""
        strides = self.body.strides
        names = [f"fpn.layer_blocks.{level}" for level in self.fpn.levels] + ["fpn.extra_blocks"]
        pairs = zip([*strides, 2 * strides[-1]], names, strict=True)
        info = [{"num_chs": self.out_channels, "reduction": stride, "module": name} for stride, name in pairs]
        return FeatureInfo(info, range(len(info)))


def _checked(out_indices: Sequence[int], allowed: range) -> tuple[int, ...]:
    """Return the indices of maps as a tuple, if they are distinct, ascending and allowed."""
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(allowed):
        raise UsageError(
            f"out_indices is {out_indices}; expected ascending numbers from {allowed[0]} to {allowed[-1]}, where 1 to "
            "4 are the stages"
        )
    return indices
