"""The names that other programs give to the layers of these networks, and ours.

Torchvision's ResNet-50 has the same names in timm and in the publication's own implementation. The networks for CIFAR
are written anew everywhere.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
_Rename = str | Callable[[re.Match[str]], str]

_POOLINGS = (2, 5, 9, 13)  # of VGG-16, in a list of its convolutions and poolings


def _in_features(match: re.Match[str]) -> str:
    """Return our number of the convolution or norm that is at a place of that list: each layer counts, ReLUs too."""
    place = int(match[2])
    poolings = sum(pooling < place for pooling in _POOLINGS)
    return f"features.{3 * (place - poolings) + poolings + (match[1] == 'norm')}."


_CIFAR_RESNET: dict[str, _Rename] = {r"^fc\.": "linear."}
_RENAMES: dict[str, dict[str, _Rename]] = {
    "resnet56_cifar": _CIFAR_RESNET,
    "resnet110_cifar": _CIFAR_RESNET,
    "vgg16_bn_cifar": {
        r"^features\.(conv|norm)(\d+)\.": _in_features,
        r"^classifier\.linear1\.": "classifier.0.",
        r"^classifier\.norm1\.": "classifier.1.",
        r"^classifier\.linear2\.": "classifier.3.",
    },
    "densenet40_cifar": {
        r"^(?:dense|block)(\d)\.(?:layer\.)?(\d+)\.(?:bn1|norm)\.": r"block\1.\2.norm.",
        r"^(?:dense|block)(\d)\.(?:layer\.)?(\d+)\.(?:conv1|conv)\.": r"block\1.\2.conv.",
        r"^trans(?:ition)?(\d)\.(?:bn1|norm)\.": r"transition\1.norm.",
        r"^trans(?:ition)?(\d)\.(?:conv1|conv)\.": r"transition\1.conv.",
        r"^conv1\.": "stem.",
        r"^(?:bn|bn1)\.": "norm.",
        r"^fc\.": "linear.",
    },
}
"""By architecture: patterns of names of other programs -> our names. Ours match none, or stay as they are."""


def in_our_names(state: Mapping[str, T], arch: str) -> dict[str, T]:
    """Return a state dict with our names in place of those of other programs.

    Args:
        state: tensors by name.
        arch: registered name of the architecture.

    Example:
        >>> from norton_det.models.other_names import in_our_names
        >>> list(in_our_names({"features.conv3.weight": 0, "features.norm16.bias": 1}, "vgg16_bn_cifar"))
        ['features.7.weight', 'features.41.bias']
        >>> list(in_our_names({"dense2.3.bn1.weight": 0, "block1.0.norm.weight": 1}, "densenet40_cifar"))
        ['block2.3.norm.weight', 'block1.0.norm.weight']
    """
    renames = _RENAMES.get(arch, {})

    def ours(name: str) -> str:
        for pattern, replacement in renames.items():
            new, found = re.subn(pattern, replacement, name)
            if found:
                return new
        return name

    return {ours(name): value for name, value in state.items()}
