"""A deployed network from its record, without measuring."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from norton_det.deployment.implementations import expand, forms_of
from norton_det.deployment.record import FORMATS, BlockChoice, Deployment
from norton_det.errors import UsageError


def restore(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return the deployed network, without measuring.

    Args:
        net: the network with its norms folded and its layers as they were.
        deployment: what was done to it.

    Raises:
        UsageError: a block or form that there is not.
    """
    deployed = with_forms(net.eval().requires_grad_(False), deployment.blocks)
    record = replace(deployment, state=net.state_dict())
    return with_record(deployed.to(memory_format=FORMATS[deployment.memory_format]), record)


def with_record(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return ``net`` with the record of what was done to it."""
    # A plain attribute: neither parameter nor buffer, and nothing that forward looks at.
    net.deployment = deployment  # type: ignore[assignment]
    return net


def has_forms(module: nn.Module) -> bool:
    """Tell whether a layer has equal forms."""
    return any(True for _ in forms_of(module))


def with_forms(net: nn.Module, choices: Sequence[BlockChoice]) -> nn.Module:
    """Return a copy of ``net`` with each layer in its form."""
    changed = copy.deepcopy(net)
    modules = dict(changed.named_modules())
    for choice in choices:
        block = modules.get(choice.name)
        if block is None or not has_forms(block):
            raise UsageError(f"{choice.name!r} is no layer of this network that has forms; expected one")
        changed.set_submodule(choice.name, expand(block, choice.form))
    return changed
