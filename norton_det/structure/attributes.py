"""What no tensor shows: the types of a network's modules and their plain attributes, compared, recorded and set.

A plain attribute is a number, text, truth value, None, or a sequence or mapping of those: stride, dilation, eps, a
score threshold. Those in which a network differs from what its architecture's builder makes are part of its spec.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torchvision.models import ResNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from norton_det.decompositions import Decomposition
from norton_det.errors import UsageError, one_line, shown
from norton_det.models.feature_maps import FeatureMaps
from norton_det.spec import frozen, is_plain
from norton_det.structure.plain_values import MOST_VALUES, OF_TENSORS, check_value

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_WITHOUT_EFFECT: dict[type, tuple[str, ...]] = {
    ResNet: ("inplanes", "dilation", "groups", "base_width", "_norm_layer"),  # used while it is made
    _ConvNd: ("_reversed_padding_repeated_twice",),  # follows from the padding
    Decomposition: ("implementation",),  # all compute the same
    MultiScaleRoIAlign: ("scales", "map_levels"),  # of the images that it saw last
    AnchorGenerator: ("cell_anchors",),  # follow from sizes and aspect ratios
    FeatureMaps: ("spec", "frozen"),  # its history; what is trained
    # Of a deployed network; of torchvision's detectors; of Module.compile.
    nn.Module: ("deployment", "train", "input_dtype", "_has_warned", "_compiled_call_impl"),
}
_WITH_EQUALITY = (bool, int, float, str, tuple, Mapping, FunctionType, Enum, type, torch.dtype, torch.device)
MISSING: Any = object()
"""Stands for an attribute or module that one of the networks lacks."""


class Difference(NamedTuple):
    """An attribute, by its path from the network, with its value in both networks.

    Attributes:
        path: as ``layer4.0.conv2.stride``.
        given: its value.
        expected: its value in the other network.
    """

    path: str
    given: Any
    expected: Any

    def __str__(self) -> str:
        """Say it in one line."""
        where = self.path or "the network"
        if self.given is MISSING:
            return f"{where} is missing; expected {_shown(self.expected)}"
        if self.expected is MISSING:
            return f"{where} is {_shown(self.given)}; expected none"
        return f"{where} is {_shown(self.given)}; expected {_shown(self.expected)}"


def differences(net: nn.Module, built: nn.Module) -> Iterator[Difference]:
    """Yield the modules, types and attributes in which ``net`` differs from ``built``.

    Decomposed layers of ``net`` are compared with the layers that ``built`` has in their place, by geometry.
    Not compared are tensors, hooks, modes, and what a module has beside the attributes that its class sets.

    Args:
        net: the network.
        built: what it should be, on any device.
    """
    modules, expected = dict(net.named_modules()), dict(built.named_modules())
    blocks = tuple(f"{name}." for name, module in modules.items() if _is_block_for(module, expected.get(name)))
    for name, module in modules.items():
        if name not in expected and not name.startswith(blocks):
            yield Difference(name, module, MISSING)
    for name, other in expected.items():
        module = modules.get(name)
        if module is None:
            yield Difference(name, MISSING, other)
        elif _is_block_for(module, other):
            yield from _different(name, type(module), _geometry(module), _geometry(other))
        elif _type(module) is not _type(other):
            yield Difference(name, module, other)
        else:
            yield from _different(name, type(module), attributes_of(module), attributes_of(other))


def attributes_of(module: Any, depth: int = 2) -> dict[str, Any]:
    """Return what sets a module apart from others of its type, but for its tensors, by path; sequences as tuples.

    Of objects inside, as the box coder of torchvision's detectors, the attributes are listed too, to this depth; of
    functions and all else the value itself.
    """
    found: dict[str, Any] = {}
    ignored = {name for kind, names in _WITHOUT_EFFECT.items() if isinstance(module, kind) for name in names}
    for name, value in vars(module).items():
        if name in ignored or (isinstance(module, nn.Module) and name in _OF_EVERY_MODULE):
            continue
        if is_plain(value):
            found[name] = frozen(value)
        elif _is_container(value) and depth:
            found[f"{name}.__class__"] = type(value)
            found |= {f"{name}.{inner}": attribute for inner, attribute in attributes_of(value, depth - 1).items()}
        elif not isinstance(value, (type, torch.Tensor)) and not _holds_tensors(value):
            found[name] = value
    return found


def set_attributes(net: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set plain attributes of ``net`` and of what is in it, by path, in place.

    Raises:
        UsageError: there is no such attribute, or it is not plain.
    """
    for path, value in attributes.items():
        *owners, name = path.split(".")
        owner: Any = net
        for inner in owners:
            owner = _inside(owner, inner, path)
        present = _inside(owner, name, path)
        if not is_plain(present) or name in _OF_EVERY_MODULE or not is_plain(value):
            raise UsageError(f"attribute {path!r} is not plain; expected a number, text or a sequence of such")
        value = frozen(value)
        if value != frozen(present):
            _check_settable(owner, path, name, value)
            check_value(path, value, frozen(present))
            _check_anchors(owner, path, name, value)
        setattr(owner, name, value)
        try:
            _renew(owner)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise UsageError(f"attribute {path!r} is {shown(value)}: {one_line(error)}") from None


def check_options(net: nn.Module, standard: nn.Module) -> None:
    """Check that options gave a network only values of the kinds that it has without them, and within limits.

    Args:
        net: what an architecture's builder made with options.
        standard: what it makes without them.

    Raises:
        UsageError: a plain attribute is of another kind, or beyond its limit.
    """
    for path, given, expected in differences(net, standard):
        if is_plain(given) and is_plain(expected) and path.rpartition(".")[2] not in OF_TENSORS:
            check_value(path, given, expected)
            if path.endswith("anchor_generator.sizes") and len(given) != len(expected):
                raise UsageError(f"attribute {path!r} is {shown(given)}; expected sizes for {len(expected)} levels")


def _check_settable(owner: Any, path: str, name: str, value: Any) -> None:
    has_tensors = isinstance(owner, nn.Module) and any(True for _ in owner.parameters(recurse=False))
    if name in OF_TENSORS and (has_tensors or isinstance(owner, (Decomposition, _BatchNorm))):
        text = f"{path} is {shown(value)}; the tensors of its layer are for {getattr(owner, name)}"
        raise UsageError(f"attribute {path!r}: {text}")


def _check_anchors(owner: Any, path: str, name: str, value: Any) -> None:
    """Check that as many boxes are predicted at a position as before: the head of the RPN stays."""
    if isinstance(owner, AnchorGenerator) and name in ("sizes", "aspect_ratios"):
        numbers = [len(level) for level in getattr(owner, name)]
        if [len(level) for level in value] != numbers:
            raise UsageError(f"attribute {path!r} is {shown(value)}; expected as many for each level as now: {numbers}")


def _different(name: str, kind: type, given: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the attributes of a module of some class that differ."""
    prefix = f"{name}." if name else ""
    for key, value in expected.items():
        if not _same(given.get(key, MISSING), value):
            yield Difference(prefix + key, given.get(key, MISSING), value)
    for key, value in given.items():
        if key not in expected and callable(value) and hasattr(kind, key):  # in place of a method: forward, for example
            yield Difference(prefix + key, value, MISSING)


def _same(given: Any, expected: Any) -> bool:
    if type(given) is type(expected) and not isinstance(expected, _WITH_EQUALITY):
        return True  # nothing more can be known of it
    return bool(given == expected)


def _is_block_for(module: nn.Module, other: nn.Module | None) -> bool:
    return isinstance(module, Decomposition) and isinstance(other, (nn.Conv2d, nn.Linear))


def _geometry(layer: Any) -> dict[str, Any]:
    values = layer.geometry() if isinstance(layer, Decomposition) else attributes_of(layer)
    return {name: frozen(values[name]) for name in ("stride", "padding", "dilation", "padding_mode") if name in values}


def _type(module: nn.Module) -> type:
    # Statistics of all processes matter in training only; elsewhere both are one norm.
    return nn.BatchNorm2d if type(module) is nn.SyncBatchNorm else type(module)


def _is_container(value: Any) -> bool:
    """Tell whether a value is an object that keeps its state in attributes; it may be callable as well."""
    others = (nn.Module, torch.Tensor, Enum, type, FunctionType)
    return not isinstance(value, others) and bool(getattr(value, "__dict__", None))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(inner, torch.Tensor) for inner in value)


def _inside(owner: Any, name: str, path: str) -> Any:
    values = {**vars(owner), **getattr(owner, "_modules", {})} if hasattr(owner, "__dict__") else {}
    if name not in values:
        raise UsageError(f"attribute {path!r}: {type(owner).__name__} has no {name!r}")
    return values[name]


def _renew(owner: Any) -> None:
    """Compute again what follows from the attributes of a module."""
    if isinstance(owner, _ConvNd):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        sizes = {name: getattr(owner, name) for name in names}
        fresh: Any = type(owner)(**sizes, padding_mode=owner.padding_mode, device="meta")
        owner._reversed_padding_repeated_twice = fresh._reversed_padding_repeated_twice
    elif isinstance(owner, AnchorGenerator):
        with torch.device("cpu"):
            pairs = list(zip(owner.sizes, owner.aspect_ratios, strict=True))
            if any(len(sizes) * len(ratios) > MOST_VALUES for sizes, ratios in pairs):
                raise ValueError(f"more than {MOST_VALUES} anchors for a position")
            owner.cell_anchors = [owner.generate_anchors(sizes, ratios) for sizes, ratios in pairs]


def _shown(value: Any) -> str:
    if is_plain(value):
        return repr(value)
    return value.__name__ if isinstance(value, type) else type(value).__name__
