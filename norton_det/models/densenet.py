"""DenseNet-40 with growth rate 12 for CIFAR (Huang et al., arXiv:1608.06993, the basic form without bottlenecks).

Three dense blocks of twelve 3x3 convolutions; each one reads all that came before it, concatenated. The 1x1 transitions
between the blocks keep the number of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.models.architecture import Architecture, RateEntry, register_architecture

_GROWTH = 12
_LAYERS = 12
_STEM = 2 * _GROWTH


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution whose output is appended to its input.

    Args:
        in_channels: channels of the input.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution and an average pooling over 2x2 pixels.

    Args:
        channels: of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2)."""
        pooled: Tensor = self.pool(self.conv(F.relu(self.norm(x))))
        return pooled


class CifarDenseNet(nn.Module):
    """DenseNet-40 (growth 12) for 32x32 images.

    Args:
        num_classes: outputs of the classifier.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        block_width = _LAYERS * _GROWTH
        self.stem = nn.Conv2d(3, _STEM, 3, padding=1, bias=False)
        self.block1 = _dense_block(_STEM)
        self.transition1 = Transition(_STEM + block_width)
        self.block2 = _dense_block(_STEM + block_width)
        self.transition2 = Transition(_STEM + 2 * block_width)
        self.block3 = _dense_block(_STEM + 2 * block_width)
        self.norm = nn.BatchNorm2d(_STEM + 3 * block_width)
        self.linear = nn.Linear(_STEM + 3 * block_width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.transition1(self.block1(self.stem(x)))
        x = self.block3(self.transition2(self.block2(x)))
        logits: Tensor = self.linear(F.relu(self.norm(x)).mean((2, 3)))
        return logits


def _dense_block(in_channels: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + i * _GROWTH) for i in range(_LAYERS)))


def _plan() -> ChannelPlan:
    widths = {"stem": _STEM}
    layers = [Layer("stem", (), "stem")]
    reads: tuple[str, ...] = ("stem",)
    for b in (1, 2, 3):
        for i in range(_LAYERS):
            name = f"block{b}.{i}"
            widths[name] = _GROWTH
            layers += [Layer.norm(f"{name}.norm", reads), Layer(f"{name}.conv", reads, name)]
            reads = (*reads, name)
        if b < 3:
            name = f"transition{b}"
            widths[name] = sum(widths[group] for group in reads)
            layers += [Layer.norm(f"{name}.norm", reads), Layer(f"{name}.conv", reads, name)]
            reads = (name,)
    layers += [Layer.norm("norm", reads), Layer("linear", reads)]
    return ChannelPlan(widths, tuple(layers))


_PLAN = _plan()

register_architecture(
    Architecture(
        "densenet40_cifar",
        CifarDenseNet,
        _PLAN,
        # The publication's lists begin with a rate for the stem, which it does not apply.
        rate_order=tuple(RateEntry(group, () if group == "stem" else (group,)) for group in _PLAN.widths),
        num_classes=10,
        image_size=32,
        classifier="linear",
        dataset="cifar10",
        keeps_width=frozenset(group for group in _PLAN.widths if group.startswith("transition")),
    ),
)
