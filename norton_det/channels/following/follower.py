"""Follow the channels of a network while it runs on an example."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from norton_det.channels.following.labels import Labels
from norton_det.channels.narrow import NORMS, RECORDS, can_narrow

_MAPS = (nn.modules.conv._ConvNd, nn.Linear)
_PER_CHANNEL = (*NORMS, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


class Channels(NamedTuple):
    """The dimension of a tensor along which its channels lie, and their labels, int64 of that dimension's size."""

    dim: int
    labels: Tensor


@dataclass
class Followed:
    """A layer of the network, as far as it has run.

    Attributes:
        name: the submodule's.
        module: the submodule.
        inputs: labels of what it reads; None before it ran.
        outputs: labels of what it writes; None if it writes no channels of its own.
        obstacle: why all its channels stay.
        ran: whether it has run on anything.
    """

    name: str
    module: nn.Module
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    obstacle: str | None = None
    ran: bool = False


class Call(NamedTuple):
    """A call of an operator: its name, its arguments by name, and what it returned."""

    name: str
    arguments: dict[str, Any]
    out: Any

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_of(list(self.arguments.values()))


class Rule(NamedTuple):
    """What an operator does with channels, and whether layers' weights are among its arguments."""

    apply: Callable[["Follower", Call], None]
    takes_weights: bool = False


class Follower(TorchDispatchMode):
    """Records for each tensor which channels of which layers it holds, while the mode is on.

    Args:
        net: the network that runs.
        rule_of: operator -> what it does with channels.
    """

    def __init__(self, net: nn.Module, rule_of: Callable[[Any], "Rule"]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = Labels()
        self.layers: dict[str, Followed] = {}
        self._rule_of, self._paused = rule_of, 0
        self._order: dict[str, None] = {}
        self._known: dict[int, tuple[StorageWeakRef, dict[Any, Channels]]] = {}
        self._owners: dict[int, tuple[Followed, str]] = {}
        self._handles = list(self._watch(net))

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, then its rule."""
        out = func(*args, **(kwargs or {}))
        if not self._paused:
            names = [argument.name for argument in func._schema.arguments]
            arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            self._follow(func, Call(func._schema.name, arguments, out))
        return out

    def followed(self) -> list[Followed]:
        """Return the layers that ran, in the order of their first run."""
        return [self.layers[name] for name in self._order]

    def of(self, tensor: Tensor) -> Channels | None:
        """Return the channels that a tensor holds, None if it holds none."""
        known = self._known.get(_storage(tensor))
        return known[1].get(_geometry(tensor)) if known else None

    def give(self, tensor: Tensor, channels: Channels | None) -> None:
        """Record the channels that a tensor holds."""
        key = _storage(tensor)
        if channels is None:
            self._known.get(key, (None, {}))[1].pop(_geometry(tensor), None)
            return
        if key not in self._known:
            if len(self._known) > 1000:
                self._known = {k: known for k, known in self._known.items() if not known[0].expired()}
            self._known[key] = (StorageWeakRef(tensor.untyped_storage()), {})
        self._known[key][1][_geometry(tensor)] = channels

    def along(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the labels of the channels along a dimension, 0 where there are none."""
        channels = self.of(tensor)
        return (
            channels.labels if channels and channels.dim == dim else torch.zeros(tensor.shape[dim], dtype=torch.int64)
        )

    def fix(self, tensors: Any, reason: str) -> None:
        """Fix all channels that the tensors hold."""
        for tensor in tensors_of(tensors):
            if channels := self.of(tensor):
                self.labels.fix(channels.labels, reason)

    def owner(self, tensor: Tensor | None) -> tuple[Followed, str] | None:
        """Return the layer that a parameter or a view of it belongs to, and its name in the layer."""
        return None if tensor is None else self._owners.get(_storage(tensor))

    def describe(self, tensor: Tensor) -> str:
        """Return what a tensor without channels is, for a reason."""
        owner = self.owner(tensor)
        return ".".join(filter(None, (owner[0].name, owner[1]))) if owner else "what no layer writes"

    def run(self, layer: Followed) -> None:
        """Note that a layer has run."""
        layer.ran = True
        self._order.setdefault(layer.name)

    def misuse(self, layer: Followed, name: str, call: Call) -> None:
        """Note that an operator takes a weight of a layer in another way than its type does."""
        layer.obstacle = layer.obstacle or f"its {name} is an argument of {short(call.name)}"
        self.run(layer)

    def read(self, layer: Followed, tensor: Tensor, dim: int) -> None:
        """Note that ``layer`` reads the channels of a tensor, which lie along ``dim``."""
        if tensor.numel():
            self.run(layer)
        channels = self.of(tensor)
        if channels and channels.dim != dim:
            self.fix(tensor, f"{layer.name} reads them along another dimension")
        labels = self.along(tensor, dim)
        if layer.inputs is None:
            layer.inputs = labels
        else:
            self.labels.unite(layer.inputs, labels, f"{layer.name} reads also what no layer writes")

    def write(self, layer: Followed, tensor: Tensor, dim: int) -> None:
        """Note that ``layer`` writes channels of its own along ``dim``."""
        if layer.outputs is None:
            layer.outputs = self.labels.new(tensor.shape[dim])
        if tensor.shape[dim] > 1:
            self.give(tensor, Channels(dim, layer.outputs))
        else:  # and may be multiplied with many
            self.labels.fix(layer.outputs, "it has a single output channel")

    def _follow(self, func: Any, call: Call) -> None:
        inputs = call.inputs
        owners = [owner for tensor in inputs if (owner := self.owner(tensor))]
        if not owners and not any(self.of(tensor) for tensor in inputs):
            return
        rule = self._rule_of(func)
        for layer, name in owners:
            if not isinstance(layer.module, _MAPS):
                self.run(layer)
            elif not func.is_view and not rule.takes_weights:
                self.misuse(layer, name, call)
        if rule.takes_weights or any(self.of(tensor) for tensor in inputs):
            rule.apply(self, call)

    def _watch(self, net: nn.Module) -> Iterator[Any]:
        """Find the layers and their parameters; yield handles of the hooks on those that are not looked into."""
        inside: tuple[str, ...] = ()
        for name, module in net.named_modules():
            if name.startswith(inside) and inside:
                continue
            layer = Followed(name, module)
            if isinstance(module, RECORDS) or (isinstance(module, _PER_CHANNEL) and not _floats(module)):
                self.layers[name] = layer
                yield module.register_forward_hook(self._record(layer))
            elif can_narrow(module) and not isinstance(module, (*_MAPS, *_PER_CHANNEL)):
                self.layers[name] = layer
                inside = (*inside, f"{name}." if name else "")
                yield module.register_forward_pre_hook(self._enter)
                yield module.register_forward_hook(self._leave(layer))
            else:
                self._own(layer)

    def _own(self, layer: Followed) -> None:
        module = layer.module
        tensors = _floats(module)
        per_channel = isinstance(module, _PER_CHANNEL)
        if per_channel and (sizes := {tensor.numel() for _, tensor in tensors}) and max(sizes) > 1:
            layer.inputs = self.labels.new(max(sizes))
            if not can_narrow(module):
                layer.obstacle = f"{layer.name} is a layer of type {type(module).__name__}, which cannot be narrowed"
        if per_channel or any(isinstance(tensor, nn.Parameter) for _, tensor in tensors):
            self.layers[layer.name] = layer
        for name, tensor in tensors:
            if other := self.owner(tensor):
                layer.obstacle = f"it shares its {name} with {other[0].name}"
                other[0].obstacle = f"it shares its {other[1]} with {layer.name}"
            self._owners[_storage(tensor)] = (layer, name)
            if layer.inputs is not None and tensor.dim() == 1 and len(tensor) == len(layer.inputs):
                self.give(tensor, Channels(0, layer.inputs))

    def _record(self, layer: Followed) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            for tensor in tensors_of(out):
                self.read(layer, tensor, 1)

        return hook

    def _enter(self, *_: Any) -> None:
        self._paused += 1

    def _leave(self, layer: Followed) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            self._paused -= 1
            if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                self.read(layer, args[0], 1)
                self.write(layer, out, 1)
            else:
                self.fix(args, f"{layer.name} does not map one tensor to one tensor")

        return hook


def short(name: str) -> str:
    """Return an operator's name without its namespace.

    Example:
        >>> short("aten::relu_")
        'relu'
    """
    return re.sub(r"(?<=\w)_$", "", name.split("::")[-1])


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries, those without memory of their own left out."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters and buffers of a module itself."""
    named = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
