"""Whether a network computes what its spec builds, on a small seeded example."""

import logging
from typing import Any

import torch
from torch import nn

from norton_det.errors import UsageError
from norton_det.runtime.modes import copied
from norton_det.runtime.outputs import relative_difference, tolerance_of
from norton_det.structure.network import Network

logger = logging.getLogger(__name__)

_SIZE = 128
"""Side in pixels to which a detector scales the example."""


def check_outputs(network: Network, built: nn.Module) -> None:
    """Check that a network and what its spec builds, with the same tensors, compute the same in evaluation mode.

    Both are run in float32 on the CPU. A network that does not take images is not compared, which is logged.

    Args:
        network: stays as it is.
        built: is converted to float32.

    Raises:
        UsageError: the outputs differ by more than rounding explains.
    """
    given = copied(network.module).cpu().float().to(memory_format=torch.contiguous_format).eval()
    example = _example(network)
    task = network.architecture.task
    try:
        with torch.no_grad():
            expected, outputs = (task.compared(net, example, size=_SIZE) for net in (given, built.float().eval()))
    except Exception as error:  # whatever a network's own code raises
        logger.warning("%s: outputs are not compared, it does not run on images: %s", network.architecture.name, error)
        return
    difference = relative_difference(outputs, expected)
    if difference > tolerance_of(expected):
        hooked = [name or "the network" for name, module in given.named_modules() if module._forward_hooks]
        reason = f", for it has forward hooks (at {', '.join(hooked)}), which no file can hold" if hooked else ""
        raise UsageError(
            f"model computes something else than the {network.architecture.name} of its spec{reason}: on a seeded "
            f"example the outputs differ by {difference:.1e} of the largest value"
        )


def _example(network: Network) -> Any:
    architecture = network.architecture
    first = next(layer.name for layer in network.plan.layers if not layer.reads)
    channels = getattr(network.module.get_submodule(first), "in_channels", 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture.task.example(architecture.task.compared_size or architecture.image_size, 2, channels)
