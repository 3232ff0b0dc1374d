"""Rebuild a deployed network from its record, without measuring."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from norton_det.deployment.implementations import expand, has_implementations
from norton_det.deployment.record import MEMORY_FORMATS, BlockChoice, Deployment
from norton_det.errors import UsageError


def restore(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return the deployed network, without measuring.

    Args:
        net: the network with its norms folded and its layers as they were.
        deployment: what was done to it.

    Raises:
        UsageError: a layer or implementation that does not exist.
    """
    deployed = with_implementations(net.eval().requires_grad_(False), deployment.blocks)
    record = replace(deployment, state=net.state_dict())
    return with_record(deployed.to(memory_format=MEMORY_FORMATS[deployment.memory_format]), record)


def with_record(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return ``net`` with the record of what was done to it."""
    # A plain attribute: neither parameter nor buffer, and not used by forward.
    net.deployment = deployment  # type: ignore[assignment]
    return net


def with_implementations(net: nn.Module, choices: Sequence[BlockChoice]) -> nn.Module:
    """Return a copy of ``net`` with each layer in its implementation."""
    changed = copy.deepcopy(net)
    modules = dict(changed.named_modules())
    for choice in choices:
        layer = modules.get(choice.name)
        if layer is None or not has_implementations(layer):
            raise UsageError(f"{choice.name!r} is no layer of this network that has implementations; expected one")
        changed.set_submodule(choice.name, expand(layer, choice.implementation))
    return changed
