"""Rebuild a deployed network from its record, without measuring."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from types import MethodType

import torch
from torch import nn

from norton_det.deployment.implementations import expand, has_implementations
from norton_det.deployment.precision import LOWER, lowered
from norton_det.deployment.record import DEPLOYED, MEMORY_FORMATS, BlockChoice, Deployment
from norton_det.errors import UsageError
from norton_det.runtime.modes import copied

logger = logging.getLogger(__name__)


def restore(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return the deployed network, without measuring.

    Args:
        net: the network with its norms folded and its layers as they were, in float32 if its precision was lowered.
        deployment: what was done to it.

    Raises:
        UsageError: a layer or implementation that does not exist.
    """
    net = net.eval().requires_grad_(False)
    deployed = with_implementations(net, deployment.blocks)
    deployed = in_memory_format(deployed, MEMORY_FORMATS[deployment.memory_format])
    if deployment.dtype is not None:
        net, deployed = (lowered(one, LOWER[deployment.dtype]) for one in (net, deployed))
    return with_record(deployed, replace(deployment, state=net.state_dict()))


def in_memory_format(net: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Put the tensors of ``net`` that have four dimensions into a memory format, and return ``net``."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
    return net


def with_record(net: nn.Module, deployment: Deployment) -> nn.Module:
    """Return ``net`` with the record of what was done to it."""
    # Plain attributes: neither parameters nor buffers, and not used by forward.
    net.deployment = deployment  # type: ignore[assignment]
    net.train = MethodType(train, net)  # type: ignore[method-assign]
    return net


def train(net: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode of a deployed network; the method ``train`` of such a network.

    Training mode has a meaning for dropout and for norms that were not folded. Folded norms are gone, and parameters
    are frozen: a warning says so.
    """
    if mode:
        logger.warning("train(): the network %s; train the one before norton_det.deploy", DEPLOYED)
    return nn.Module.train(net, mode)


def with_implementations(net: nn.Module, choices: Sequence[BlockChoice]) -> nn.Module:
    """Return a copy of ``net`` with each layer in its implementation."""
    changed = copied(net)
    modules = dict(changed.named_modules())
    for choice in choices:
        layer = modules.get(choice.name)
        if layer is None or not has_implementations(layer):
            raise UsageError(f"{choice.name!r} is no layer of this network that has implementations; expected one")
        changed.set_submodule(choice.name, expand(layer, choice.implementation))
    return changed
