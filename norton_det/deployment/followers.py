"""Which layer each batch norm follows, and why a norm cannot be folded.

Running the network once shows it. A norm can be folded where its input is the output of one layer and nothing else uses
that output.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.decompositions import Decomposition
from norton_det.runtime.given import has_hooks
from norton_det.runtime.outputs import opened

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
"""Norms whose function is known: a subclass may do more."""
_NORM_AND_MORE = {"timm.layers.norm_act.BatchNormAct2d": ("drop", "act")}
"""Classes of other libraries that are a batch norm and what follows: the names of that, in order."""
LAYERS: Mapping[type[nn.Module], int | None] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5, nn.Linear: 2}
"""Layers whose function is known, with the dimensions of outputs whose channels are those of a norm."""


_INTO = f"{', '.join(kind.__name__ for kind in LAYERS)} and decomposed layers"


class NotFoldable(Exception):  # noqa: N818  it is caught where it is raised for
    """Says why a norm stays."""


def followers(net: nn.Module, arguments: tuple[Any, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Run ``net``, in evaluation mode, and return which norms can be folded, and which not.

    Args:
        net: the network.
        arguments: to run it with.

    Returns:
        norm -> the layer before it, and norm -> the reason why it stays, both by name.
    """
    record = _Record()
    hooked = {name for name, module in net.named_modules() if has_hooks(module)}
    with _recording(net, record), record, torch.no_grad():
        outputs = net(*arguments)
    modules = dict(net.named_modules())
    kept = [vars(module) for module in modules.values()]  # what a network keeps for itself may be read later
    for leaf in tree_leaves(opened([outputs, kept])):
        record.use(leaf)
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, norm in modules.items():
        if isinstance(norm, (_BatchNorm, FrozenBatchNorm2d)):
            try:
                found[name] = _layer_before(name, modules, record, hooked)
            except NotFoldable as reason:
                reasons[name] = str(reason)
    return found, reasons


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module computes what its class is known to compute: no subclass, no forward of its own."""
    known = type(module) in LAYERS or isinstance(module, Decomposition)
    return known and "forward" not in vars(module)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm with running statistics, which does nothing else that is not known."""
    return _is_known_norm(module) and getattr(module, "running_mean", None) is not None


def after_norm(norm: nn.Module) -> nn.Module:
    """Return what a norm does beside normalising: what stays where it was when it is folded."""
    names = _NORM_AND_MORE.get(_class_name(norm), ())
    return nn.Sequential(*(getattr(norm, name) for name in names)) if names else nn.Identity()


def _is_known_norm(module: nn.Module) -> bool:
    return (type(module) in NORMS or _class_name(module) in _NORM_AND_MORE) and "forward" not in vars(module)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _layer_before(name: str, modules: Mapping[str, nn.Module], record: "_Record", hooked: set[str]) -> str:
    """Return the layer before a norm.

    Raises:
        NotFoldable: the norm has to stay.
    """
    norm: Any = modules[name]
    _check_norm(name, norm, record, hooked)
    layer_name, dimensions = record.inputs[name]
    layer: Any = modules[layer_name]
    if not is_layer(layer):
        own = " with a forward of its own" if "forward" in vars(layer) else ""
        raise NotFoldable(f"follows {layer_name}, a {type(layer).__name__}{own}; norms are folded into {_INTO} only")
    if layer_name in hooked:
        raise NotFoldable(f"follows {layer_name}, which has hooks")
    if record.runs[layer_name] != 1:
        raise NotFoldable(f"follows {layer_name}, which runs {record.runs[layer_name]} times")
    if record.uses.get(layer_name, 0) or record.followed[layer_name] != 1:
        raise NotFoldable(f"the output of {layer_name} is used elsewhere too")
    dense = layer.to_dense() if isinstance(layer, Decomposition) else layer
    if dimensions != LAYERS.get(type(dense), 4):
        raise NotFoldable(f"its channels are not those of {layer_name}")
    return layer_name


def _check_norm(name: str, norm: Any, record: "_Record", hooked: set[str]) -> None:
    if not _is_known_norm(norm):
        raise NotFoldable(f"a {type(norm).__name__}, which may do more than a batch norm")
    if not is_norm(norm) or (norm.training and type(norm) is not FrozenBatchNorm2d):
        raise NotFoldable("normalises by the statistics of its input")
    if name in hooked:
        raise NotFoldable("has hooks")
    if record.runs.get(name, 0) != 1:
        raise NotFoldable(f"runs {record.runs.get(name, 0)} times on the example")
    if name not in record.inputs:
        raise NotFoldable("follows no convolution or linear layer")


class _Record(TorchFunctionMode):
    """How often layers and norms ran, and what was done with the layers' outputs outside of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that the id stays its own
        self.uses: dict[str, int] = {}
        self.runs: dict[str, int] = {}
        self.inputs: dict[str, tuple[str, int]] = {}  # of a norm: the layer, and the dimensions of its output
        self.followed: dict[str, int] = {}
        self.inside_norm = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.inside_norm:
            for leaf in tree_leaves((args, kwargs)):
                self.use(leaf)
        return func(*args, **kwargs)

    def use(self, value: Any) -> None:
        if isinstance(value, Tensor) and id(value) in self.watched:
            name = self.watched[id(value)][0]
            self.uses[name] = self.uses.get(name, 0) + 1

    def after_layer(self, name: str, output: Any) -> None:
        self.runs[name] = self.runs.get(name, 0) + 1
        if isinstance(output, Tensor):
            self.watched[id(output)] = (name, output)

    def before_norm(self, name: str, arguments: list[Any]) -> None:
        self.inside_norm = True  # from here on: also to ask for the dimensions is a use
        self.runs[name] = self.runs.get(name, 0) + 1
        if arguments and id(arguments[0]) in self.watched:
            layer, output = self.watched[id(arguments[0])]
            self.inputs[name] = (layer, output.ndim)
            self.followed[layer] = self.followed.get(layer, 0) + 1

    def after_norm(self) -> None:
        self.inside_norm = False


@contextmanager
def _recording(net: nn.Module, record: _Record) -> Iterator[None]:
    with ExitStack() as hooks:  # removed also where the network fails
        for name, module in net.named_modules():
            if _is_known_norm(module):
                before = module.register_forward_pre_hook(
                    lambda m, args, named, n=name: record.before_norm(n, [*args, *named.values()]), with_kwargs=True
                )
                after = module.register_forward_hook(lambda m, args, out: record.after_norm())
            elif isinstance(module, (_ConvNd, nn.Linear, Decomposition)):
                before = module.register_forward_hook(lambda m, args, out, n=name: record.after_layer(n, out))
                after = before
            else:
                continue
            for hook in {before, after}:
                hooks.enter_context(hook)
        yield
