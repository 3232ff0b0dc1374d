"""ResNet-50: torchvision's own class, and its channel plan."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.errors import UsageError
from norton_det.models.architecture import Architecture, RateEntry, register_architecture

STAGES = ("layer1", "layer2", "layer3", "layer4")
_BLOCKS = (3, 4, 6, 3)
_WIDTHS = (256, 512, 1024, 2048)
_NORM_LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer for layer in (nn.BatchNorm2d, FrozenBatchNorm2d, nn.SyncBatchNorm)
}


def norm_class(norm_layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return the norm layer of a name; a class or function as it is.

    Raises:
        UsageError: no such name.
    """
    if not isinstance(norm_layer, str):
        return norm_layer
    if norm_layer not in _NORM_LAYERS:
        raise UsageError(f"unknown norm_layer {norm_layer!r}; expected one of: {', '.join(_NORM_LAYERS)}")
    return _NORM_LAYERS[norm_layer]


def refuse_weights(options: Mapping[str, Any]) -> None:
    """Check that the options of a builder, which may be those of a file, ask for no download.

    Raises:
        UsageError: they do.
    """
    if options.get("weights") is not None or "pretrained" in options:
        raise UsageError("options have weights; expected none: builders download nothing")


def _resnet50(
    *, num_classes: int, norm_layer: str | Callable[..., nn.Module] = "BatchNorm2d", **options: Any
) -> ResNet:
    """Return torchvision's network, whose norm layer may be given by name, as in a file."""
    refuse_weights(options)
    return torchvision_resnet50(num_classes=num_classes, norm_layer=norm_class(norm_layer), **options)


def _options_of(net: Any) -> dict[str, Any]:
    return {"norm_layer": FrozenBatchNorm2d.__name__} if type(net.bn1) is FrozenBatchNorm2d else {}


def _blocks() -> list[tuple[str, int, str]]:
    """Return stage, inner width and name of each bottleneck."""
    stages = zip(STAGES, _BLOCKS, _WIDTHS, strict=True)
    return [(stage, width // 4, f"{stage}.{b}") for stage, blocks, width in stages for b in range(blocks)]


def _plan() -> ChannelPlan:
    widths = {"stem": 64, **dict(zip(STAGES, _WIDTHS, strict=True))}
    layers = [Layer("conv1", (), "stem"), Layer.norm("bn1", ("stem",))]
    source = "stem"
    for stage, inner, block in _blocks():
        first, second = f"{block}.conv1", f"{block}.conv2"
        widths |= {first: inner, second: inner}
        layers += [Layer(first, (source,), first), Layer.norm(f"{block}.bn1", (first,))]
        layers += [Layer(second, (first,), second), Layer.norm(f"{block}.bn2", (second,))]
        layers += [Layer(f"{block}.conv3", (second,), stage), Layer.norm(f"{block}.bn3", (stage,))]
        if source != stage:
            layers += [Layer(f"{block}.downsample.0", (source,), stage), Layer.norm(f"{block}.downsample.1", (stage,))]
        source = stage
    layers.append(Layer("fc", (source,)))
    return ChannelPlan(widths, tuple(layers))


RESNET50 = register_architecture(
    Architecture(
        "resnet50",
        _resnet50,
        _plan(),
        rate_order=(
            *(RateEntry(group, (group,)) for group in ("stem", *STAGES[:-1])),
            *(RateEntry(block, (f"{block}.conv1", f"{block}.conv2")) for _, _, block in _blocks()),
        ),
        num_classes=1000,
        image_size=224,
        classifier="fc",
        dataset="imagenet",
        kept_dense={"conv1": "the stem stays dense, as published"},
        weights=ResNet50_Weights,
        options_of=_options_of,
    ),
)
