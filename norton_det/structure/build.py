"""From a spec to the network it describes, and back."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import narrow_network
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.spec import Spec


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
