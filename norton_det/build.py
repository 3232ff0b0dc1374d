"""From a spec to the network it describes, and back."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import ChannelMap, narrow_network
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.deployment.record import deployment_of
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.spec import Spec
from norton_det.weights import load_state


def build(spec: Spec, device: torch.device | str = "cpu") -> nn.Module:
    """Return the network that ``spec`` describes, with its layers' usual random initialisation.

    On ``device="meta"`` nothing is allocated: enough to look at shapes.

    Raises:
        UsageError: the architecture, a layer, a group or a width of the spec does not exist.
    """
    architecture = ARCHITECTURES[spec.arch]
    block = DECOMPOSITIONS[spec.decomposition]
    with torch.device(device):
        net = architecture.build(spec.num_classes, **spec.options)
        for name, rank in spec.ranks.items():
            net.set_submodule(name, block.like(conv_of(net, name, spec.arch), rank))
    narrow_network(net, architecture.plan, _kept_channels(spec, architecture))
    return net.to(device)


DEPLOYED = "is deployed, for inference only: batch norms are folded, so it can be neither trained nor compressed"


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
    """Check that ``net`` has the tensors of ``spec``, and the layers that it says: that it is not deployed.

    Raises:
        UsageError: it has not; the message names the first difference.
    """
    if deployment_of(net):
        raise UsageError(f"model {DEPLOYED}; expected the network before norton_det.deployment.deploy")
    state = {name: tensor.to("meta") for name, tensor in net.state_dict().items()}
    try:
        load_state(build(spec, "meta"), state, f"model (as arch={spec.arch!r})")
    except DataError as error:
        raise UsageError(str(error)) from None


def conv_of(net: nn.Module, name: str, arch: str) -> nn.Conv2d:
    """Return the convolution called ``name``.

    Raises:
        UsageError: there is none.
    """
    module = dict(net.named_modules()).get(name)
    if not isinstance(module, nn.Conv2d):
        found = "no such layer" if module is None else f"a {type(module).__name__}"
        raise UsageError(f"{name!r} is {found} in {arch}; expected the name of a convolution")
    return module


def _kept_channels(spec: Spec, architecture: Architecture) -> dict[str, Tensor]:
    full = architecture.plan.widths
    _check_names(spec.widths, full, f"channel group of {spec.arch}")
    for group, width in spec.widths.items():
        last = spec.kept[group][-1] if group in spec.kept else width - 1
        if last >= full[group]:
            raise UsageError(f"group {group!r} keeps channel {last}; {spec.arch} has {full[group]} there")
    return {
        group: torch.tensor(list(spec.kept.get(group, range(width))))
        for group, width in spec.widths.items()
        if width < full[group]
    }


def _check_names(names: Iterable[str], known: Iterable[str], kind: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; expected one of: {', '.join(known)}")
