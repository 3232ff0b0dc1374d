"""Whether a network computes what its spec builds, on a small seeded example."""

import logging
from typing import Any

import torch
from torch import nn

from norton_det.decompositions import Decomposition
from norton_det.errors import UsageError
from norton_det.runtime.given import has_hooks
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
            expected = task.compared(given, example, size=_SIZE)
    except Exception as error:  # whatever a network's own code raises
        logger.warning("%s: outputs are not compared, it does not run on images: %s", network.architecture.name, error)
        return
    try:
        with torch.no_grad():
            outputs = task.compared(built.float().eval(), example, size=_SIZE)
    except Exception as error:
        name = network.architecture.name
        raise UsageError(f"model runs where the {name} of its spec does not{_hooks(given)}: {error}") from None
    parts = {key: (outputs[key], expected[key]) for key in expected} if isinstance(expected, dict) else {}
    differences = {key: relative_difference(*pair) for key, pair in (parts or {"": (outputs, expected)}).items()}
    part = max(differences, key=differences.__getitem__)
    if differences[part] > tolerance_of(expected):
        raise UsageError(
            f"model computes something else than the {network.architecture.name} of its spec{_hooks(given)}: on a "
            f"seeded example the outputs {part and f'of {part} '}differ by {differences[part]:.1e} of the largest value"
        )


def _hooks(net: nn.Module) -> str:
    hooked = [name or "the network" for name, module in net.named_modules() if has_hooks(module)]
    return f", for it has hooks (at {', '.join(hooked)}), which no file can hold" if hooked else ""


def _example(network: Network) -> Any:
    architecture = network.architecture
    task = architecture.task
    first = next(layer.name for layer in network.plan.layers if not layer.reads)
    inside = network.module.get_submodule(first).modules()
    layers: list[Any] = [module for module in inside if isinstance(module, (nn.Conv2d, Decomposition))]
    channels = layers[0].in_channels if layers else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return task.example(task.compared_size or architecture.image_size, 1, channels)
