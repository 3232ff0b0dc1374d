"""From a network to the spec that describes it."""

from torch import nn

from norton_det.channels.narrow import ChannelMap
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.weights import load_state
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network
from norton_det.structure.network import Network


def describe(net: nn.Module, arch: str) -> Spec:
    """Return the spec of a network of an architecture, dense or compressed.

    Raises:
        UsageError: the network is of another architecture; or its kept channels matter and cannot be read off it.
    """
    return described(net, ARCHITECTURES[arch]).spec


def described(net: nn.Module, architecture: Architecture, spec: Spec | None = None) -> Network:
    """Return a network with its spec, which is checked.

    Args:
        net: dense or compressed.
        architecture: of the network.
        spec: what the network is said to be; None reads it off the network.

    Raises:
        UsageError: the network is of another architecture or spec; or, without a spec, its kept channels matter and
            cannot be read off it.
    """
    network = Network(net, spec or _spec_of(net, architecture), architecture)
    check_described(network)
    return network


def check_described(network: Network) -> None:
    """Check that the module has the tensors of its spec.

    Raises:
        UsageError: it has not; the message names the first difference.
    """
    state = {name: tensor.to("meta") for name, tensor in network.module.state_dict().items()}
    built = build_network(network.spec, network.architecture, "meta").module
    try:
        load_state(built, state, f"model (as arch={network.architecture.name!r})")
    except DataError as error:
        raise UsageError(str(error)) from None


def _spec_of(net: nn.Module, architecture: Architecture) -> Spec:
    modules = dict(net.named_modules())
    classifier = modules.get(architecture.classifier)
    if not isinstance(classifier, nn.Linear):
        raise UsageError(f"model has no linear layer {architecture.classifier!r}; expected a {architecture.name}")
    widths = {}
    for group, full in architecture.plan.widths.items():
        writer = modules.get(architecture.plan.writers(group)[0])
        width = getattr(writer, "out_channels", full)
        if width != full:
            widths[group] = width
    if widths and any(isinstance(module, ChannelMap) for module in modules.values()):
        raise UsageError(
            f"the kept channels of a narrowed {architecture.name} cannot be read off it; expected its Spec"
        )
    return Spec(
        architecture.name,
        classifier.out_features,
        {name: _decomposed(module) for name, module in modules.items() if isinstance(module, Decomposition)},
        widths=widths,
        options=architecture.options_of(net),
    )


def _decomposed(block: Decomposition) -> DecomposedLayer:
    for method in DECOMPOSITIONS:
        if type(block) is DECOMPOSITIONS[method]:
            return DecomposedLayer(method, block.rank)
    raise UsageError(f"a layer is a {type(block).__name__}; expected one of: {', '.join(DECOMPOSITIONS)}")
