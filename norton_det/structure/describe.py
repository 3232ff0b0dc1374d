"""From a network to the spec that describes it."""

from torch import nn

from norton_det.channels.narrow import ChannelMap
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.weights import load_state
from norton_det.spec import Spec
from norton_det.structure.build import build


def describe(net: nn.Module, arch: str) -> Spec:
    """Return the spec of a network of an architecture, dense or compressed.

    Raises:
        UsageError: the network is of another architecture; or which channels it kept cannot be seen and matters.
    """
    architecture = ARCHITECTURES[arch]
    modules = dict(net.named_modules())
    classifier = modules.get(architecture.classifier)
    if not isinstance(classifier, nn.Linear):
        raise UsageError(f"model has no linear layer {architecture.classifier!r}; expected a {arch}")
    blocks = {name: module for name, module in modules.items() if isinstance(module, Decomposition)}
    kinds = {name for block in blocks.values() for name in DECOMPOSITIONS if type(block) is DECOMPOSITIONS[name]}
    widths = {}
    for group, full in architecture.plan.widths.items():
        writer = modules.get(architecture.plan.writers(group)[0])
        width = getattr(writer, "out_channels", full)
        if width != full:
            widths[group] = width
    if widths and any(isinstance(module, ChannelMap) for module in modules.values()):
        raise UsageError(f"which channels a narrowed {arch} keeps cannot be seen from it; expected its Spec")
    spec = Spec(
        arch,
        classifier.out_features,
        ranks={name: block.rank for name, block in blocks.items()},
        widths=widths,
        decomposition=kinds.pop() if kinds else "cp",
        options=architecture.options_of(net),
    )
    check_described(net, spec)
    return spec


def check_described(net: nn.Module, spec: Spec) -> None:
    """Check that ``net`` has the tensors of ``spec``.

    Raises:
        UsageError: it has not; the message names the first difference.
    """
    state = {name: tensor.to("meta") for name, tensor in net.state_dict().items()}
    try:
        load_state(build(spec, "meta"), state, f"model (as arch={spec.arch!r})")
    except DataError as error:
        raise UsageError(str(error)) from None
