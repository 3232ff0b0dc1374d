"""ResNet-56 and ResNet-110 for CIFAR (He et al., arXiv:1512.03385, section 4.2).

Three stages of basic blocks; shortcuts without parameters, which subsample and pad with zero channels (option A).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.narrow import ChannelMap
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.errors import UsageError, shown
from norton_det.models.architecture import Architecture, RateEntry, register_architecture

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the shortcut.
        shortcut: what maps the input to the output's channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for 32x32 images with 6n + 2 layers.

    Args:
        blocks: n, the number of basic blocks a stage.
        num_classes: outputs of the classifier.
        shortcuts: by stage, which input channel each output channel of its first shortcut is, -1 for zero, where that
            is another one than by option A.
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, shortcuts: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        index = _checked_shortcuts(shortcuts or {})
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, 1, index.get("layer1"))
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, 2, index.get("layer2"))
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, 2, index.get("layer3"))
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _checked_shortcuts(shortcuts: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """Return the shortcuts of the first blocks of stages, which a file may tell.

    Raises:
        UsageError: a stage that does not exist, or input channels that it does not have.
    """
    inputs = {"layer1": _WIDTHS[0], **dict(zip(("layer2", "layer3"), _WIDTHS, strict=False))}
    outputs = dict(zip(inputs, _WIDTHS, strict=True))
    if not isinstance(shortcuts, Mapping):
        raise UsageError(f"shortcuts is {shown(shortcuts)}; expected channels by stage")
    for stage, index in shortcuts.items():
        if stage not in inputs:
            raise UsageError(f"shortcuts has stage {stage!r}; expected some of: {', '.join(inputs)}")
        channels = isinstance(index, (list, tuple)) and len(index) == outputs[stage]
        if not (channels and all(type(c) is int and -1 <= c < inputs[stage] for c in index)):
            expected = f"{outputs[stage]} channels, each -1 or below {inputs[stage]}"
            raise UsageError(f"shortcuts of {stage} is {shown(index)}; expected {expected}")
    return shortcuts


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, index: Sequence[int] | None) -> nn.Sequential:
    # The first block joins two channel groups even where they are equally wide, so its shortcut is a map as well.
    if index is None:
        pad = (out_channels - in_channels) // 2
        index = [-1] * pad + list(range(in_channels)) + [-1] * (out_channels - in_channels - pad)
    first = BasicBlock(in_channels, out_channels, stride, ChannelMap(index, stride))
    others = [BasicBlock(out_channels, out_channels, 1, nn.Identity()) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


def _plan(blocks: int) -> ChannelPlan:
    widths = {"stem": _WIDTHS[0]}
    layers = [Layer("conv1", (), "stem"), Layer.norm("bn1", ("stem",))]
    source = "stem"
    for stage, width in zip(("layer1", "layer2", "layer3"), _WIDTHS, strict=True):
        widths[stage] = width
        for b in range(blocks):
            block = f"{stage}.{b}"
            inner = f"{block}.conv1"
            widths[inner] = width
            layers += [Layer(inner, (source,), inner), Layer.norm(f"{block}.bn1", (inner,))]
            layers += [Layer(f"{block}.conv2", (inner,), stage), Layer.norm(f"{block}.bn2", (stage,))]
            if b == 0:
                layers.append(Layer(f"{block}.shortcut", (source,), stage))
            source = stage
    layers.append(Layer("linear", (source,)))
    return ChannelPlan(widths, tuple(layers))


def _rate_order(blocks: int) -> tuple[RateEntry, ...]:
    inner = [f"{stage}.{b}.conv1" for stage in ("layer1", "layer2", "layer3") for b in range(blocks)]
    return tuple(RateEntry(name, (name,)) for name in ("stem", "layer1", "layer2", *inner))


for _name, _blocks in (("resnet56_cifar", 9), ("resnet110_cifar", 18)):
    register_architecture(
        Architecture(
            _name,
            partial(CifarResNet, _blocks),
            _plan(_blocks),
            _rate_order(_blocks),
            num_classes=10,
            image_size=32,
            classifier="linear",
            dataset="cifar10",
        ),
    )
