"""From a spec to the network that it describes."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import narrow_network
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.decompositions.conv import DenseLayer, pair
from norton_det.errors import UsageError, one_line, shown
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.runtime.initialisation import give_memory, has_constants, without_initialisation
from norton_det.spec import Spec, is_plain
from norton_det.structure.attributes import check_options, set_attributes
from norton_det.structure.network import Network

_HARMLESS_OPTIONS = ("norm_layer", "shortcuts", "out_indices")
"""Those that the builders check themselves."""


def build(spec: Spec, device: torch.device | str = "cpu") -> nn.Module:
    """Return the network that ``spec`` describes, with its layers' usual random initialisation.

    Args:
        spec: what :func:`norton_det.compress` returned, or one written by hand.
        device: of the parameters. On "meta" nothing is allocated, which is enough to see shapes.

    Raises:
        UsageError: the architecture, a method, a layer, a group or a width of the spec does not exist.

    Example:
        >>> import norton_det as nd
        >>> net = nd.build(nd.Spec("resnet56_cifar", 10, widths={"layer1.0.conv1": 4}), device="meta")
        >>> net.layer1[0].conv1.out_channels
        4
    """
    return build_network(spec, ARCHITECTURES[spec.arch], device).module


def build_network(spec: Spec, architecture: Architecture, device: torch.device | str = "cpu") -> Network:
    """Return the network that ``spec`` describes as one value; errors as of :func:`build`."""
    if bool(spec.num_classes) != bool(architecture.classifier):
        expected = "at least 1" if architecture.classifier else "0: it has no classifier"
        raise UsageError(f"num_classes of {architecture.name} is {spec.num_classes}; expected {expected}")
    filled = torch.device(device).type != "meta"
    with torch.device(device), nullcontext() if filled else without_initialisation():
        net = _dense(spec, architecture)
    apply_spec(net, spec, architecture)
    network = Network(net.to(device), spec, architecture)
    network.handed_out()
    return network


def build_checked(spec: Spec, architecture: Architecture, check: Callable[[nn.Module], object]) -> Network:
    """Return the network that ``spec`` describes on the CPU, its tensors to be filled, once it was checked.

    It is built without memory first, so that what does not pass the check takes none.

    Args:
        spec: of the network.
        architecture: that of ``spec``.
        check: of the network on "meta"; raises an error if it is not good. It may change its modules.

    Raises:
        UsageError: as of :func:`build`.
    """
    network = build_network(spec, architecture, "meta")
    check(network.module)
    if not has_constants(network.module):
        give_memory(network.module)
        return network
    with torch.random.fork_rng(devices=[]), without_initialisation():
        network = build_network(spec, architecture)
    check(network.module)
    return network


def _dense(spec: Spec, architecture: Architecture) -> nn.Module:
    try:
        net = architecture.build(spec.num_classes, **spec.options)
    except UsageError:
        raise
    except Exception as error:  # whatever a builder raises of options that it does not expect
        if not spec.options:
            raise
        text = f"options {shown(dict(spec.options))} of {architecture.name}: {one_line(error)}"
        raise UsageError(text) from error
    if any(is_plain(value) for name, value in spec.options.items() if name not in _HARMLESS_OPTIONS):
        with torch.device("meta"), torch.random.fork_rng(devices=[]), without_initialisation():
            check_options(net, architecture.build(spec.num_classes))
    return net


def apply_spec(net: nn.Module, spec: Spec, architecture: Architecture) -> None:
    """Give a dense network of the architecture the structure of ``spec``, in place; decomposed layers are not fitted.

    Raises:
        UsageError: an attribute, a method, a layer, a group or a width of the spec does not exist.
    """
    set_attributes(net, spec.attributes)
    for name, layer in spec.decompositions.items():
        dense = layer_of(net, name, architecture)
        try:
            with torch.device(dense.weight.device):
                block = DECOMPOSITIONS[layer.method].like(dense, layer.rank)
        except UsageError as error:
            raise UsageError(f"layer {name!r}: {error}") from None
        if block.rank != (pair(layer.rank) if isinstance(block.rank, tuple) else layer.rank):
            raise UsageError(f"layer {name!r}: rank {layer.rank} is above its channels; expected at most {block.rank}")
        net.set_submodule(name, block)
    narrow_network(net, architecture.plan, _kept_channels(spec, architecture))


def layer_of(net: nn.Module, name: str, architecture: Architecture) -> DenseLayer:
    """Return the convolution or linear layer called ``name``.

    Raises:
        UsageError: there is none.
    """
    try:
        module = net.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        problem = "no such layer" if module is None else f"a {type(module).__name__}"
        expected = "the name of a convolution or linear layer"
        raise UsageError(f"{name!r} is {problem} in {architecture.name}; expected {expected}")
    return module


def _kept_channels(spec: Spec, architecture: Architecture) -> dict[str, Tensor]:
    full = architecture.plan.widths
    _check_names(spec.widths, full, f"channel group of {architecture.name}")
    for group, width in spec.widths.items():
        last = spec.kept[group][-1] if group in spec.kept else width - 1
        if last >= full[group]:
            raise UsageError(f"group {group!r} keeps channel {last}; {architecture.name} has {full[group]} there")
    return {
        group: torch.tensor(list(spec.kept.get(group, range(width))))
        for group, width in spec.widths.items()
        if width < full[group]
    }


def _check_names(names: Iterable[str], registered: Iterable[str], kind: str) -> None:
    registered = list(registered)
    for name in names:
        if name not in registered:
            raise UsageError(f"unknown {kind} {name!r}; expected one of: {', '.join(registered)}")
