"""From a network to the spec that describes it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from norton_det.channels.narrow import ChannelMap
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.weights import load_state
from norton_det.spec import DecomposedLayer, Spec, is_plain
from norton_det.structure.attributes import MISSING, Difference, differences
from norton_det.structure.build import build_network
from norton_det.structure.network import Network


def describe(net: nn.Module, arch: str) -> Spec:
    """Return the spec of a network of an architecture, dense or compressed.

    Raises:
        UsageError: the network is of another architecture; or its kept channels matter and cannot be read off it.
    """
    return described(net, ARCHITECTURES[arch]).spec


def described(net: nn.Module, architecture: Architecture, spec: Spec | None = None) -> Network:
    """Return a network with its spec, which is checked against what it builds.

    Plain attributes that differ from those of the spec (a stride, an eps, a score threshold) are put down in it.

    Args:
        net: dense or compressed.
        architecture: of the network.
        spec: what the network is said to be; None reads it off the network.

    Raises:
        UsageError: the network is of another architecture or spec: other tensors, types of modules, or attributes that
            cannot be put down; the message names the first. Or, without a spec, its kept channels matter and cannot be
            read off it.
    """
    spec = replace(spec or _spec_of(net, architecture), attributes={})
    spec = replace(spec, options=_options_of(net, spec, architecture))
    standard = build_network(replace(spec, decompositions={}), architecture, "meta").module
    spec = replace(spec, attributes=_recorded(net, standard, architecture))
    built = build_network(spec, architecture, "meta").module
    for difference in differences(net, built):
        raise UsageError(_not_described(difference, architecture))
    state = {name: tensor.to("meta") for name, tensor in net.state_dict().items()}
    try:
        load_state(built, state, f"model (as arch={architecture.name!r})")
    except DataError as error:
        raise UsageError(str(error)) from None
    return Network(net, spec, architecture)


def _options_of(net: nn.Module, spec: Spec, architecture: Architecture) -> Mapping[str, Any]:
    """Return the options of the spec or, where the network was changed since, those that are read off it."""
    if architecture.options_of is None:
        return spec.options
    bare = replace(spec, decompositions={}, widths={}, kept={})
    found = architecture.options_of(net)
    same = found == architecture.options_of(build_network(bare, architecture, "meta").module)
    return spec.options if same else found


def _recorded(net: nn.Module, standard: nn.Module, architecture: Architecture) -> dict[str, Any]:
    """Return the attributes that turn the standard network, narrowed, into this one."""
    recorded = {}
    for difference in differences(net, standard):
        if not is_plain(difference.given) or not is_plain(difference.expected) or difference.given is MISSING:
            raise UsageError(_not_described(difference, architecture))
        recorded[difference.path] = difference.given
    return recorded


def _not_described(difference: Difference, architecture: Architecture) -> str:
    return (
        f"model differs from {architecture.name}: {difference}. A spec cannot hold that; "
        "norton_det.register_architecture makes a network of your own known"
    )


def _spec_of(net: nn.Module, architecture: Architecture) -> Spec:
    modules = dict(net.named_modules())
    widths = {}
    for group, full in architecture.plan.widths.items():
        writer = modules.get(architecture.plan.writers(group)[0])
        width = getattr(writer, "out_channels", getattr(writer, "out_features", full))
        if width != full:
            widths[group] = width
    if widths and any(isinstance(module, ChannelMap) for module in modules.values()):
        raise UsageError(
            f"the kept channels of a narrowed {architecture.name} cannot be read off it; expected its Spec"
        )
    return Spec(
        architecture.name,
        _num_classes(modules, architecture),
        {name: _decomposed(module) for name, module in modules.items() if isinstance(module, Decomposition)},
        widths=widths,
        options=architecture.options_of(net) if architecture.options_of else {},
    )


def _num_classes(modules: Mapping[str, nn.Module], architecture: Architecture) -> int:
    if not architecture.classifier:
        return architecture.num_classes
    classifier = modules.get(architecture.classifier)
    if isinstance(classifier, Decomposition):
        classifier = classifier.to_dense()
    if not isinstance(classifier, nn.Linear):
        raise UsageError(f"model has no linear layer {architecture.classifier!r}; expected a {architecture.name}")
    return classifier.out_features


def _decomposed(block: Decomposition) -> DecomposedLayer:
    for method in DECOMPOSITIONS:
        if type(block) is DECOMPOSITIONS[method]:
            return DecomposedLayer(method, block.rank)
    raise UsageError(f"a layer is a {type(block).__name__}; expected one of: {', '.join(DECOMPOSITIONS)}")
