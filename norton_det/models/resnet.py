"""ResNet-50: torchvision's own class, and its channel plan."""

from torchvision.models import ResNet50_Weights, resnet50

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.models.architecture import Architecture, RateEntry, register_architecture

STAGES = ("layer1", "layer2", "layer3", "layer4")
_BLOCKS = (3, 4, 6, 3)
_WIDTHS = (256, 512, 1024, 2048)


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
        resnet50,
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
    ),
)
