"""Where weights come from: a state-dict file, torchvision's published weights by name, or a seed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from norton_det.errors import DataError, UsageError
from norton_det.models.architecture import Architecture
from norton_det.models.tensor_files import read_file

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def initial_network(
    architecture: Architecture,
    weights: str | Path | WeightsEnum | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, str]:
    """Return the dense network of an architecture with its weights, and where these came from.

    Args:
        architecture: of the network.
        weights: a state-dict file; one of torchvision's weights, or its name ("IMAGENET1K_V2"); None: seeded random.
        num_classes: None takes it from the weights, or else the architecture's default.
        seed: of the random initialisation.
        progress: show the progress of a download.

    Raises:
        UsageError: unknown weights.
        DataError: the file is missing, is no state dict, or does not fit.
    """
    named = named_weights(architecture.weights, weights)
    if weights is None:
        state, source = None, f"random, seed {seed}"
    elif named is not None:
        state, source = named.get_state_dict(progress=progress, check_hash=True), str(named)
    else:
        state, source = read_state_dict(weights), Path(str(weights)).name
    if state is not None and num_classes is None and f"{architecture.classifier}.weight" in state:
        num_classes = len(state[f"{architecture.classifier}.weight"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = architecture.build(num_classes)
    if state is not None:
        load_state(net, state, source)
    return net, source


def named_weights(enum: type[WeightsEnum] | None, weights: str | Path | WeightsEnum | None) -> WeightsEnum | None:
    """Return the member of ``enum`` that ``weights`` is or names, or None where it is something else (a path).

    Raises:
        UsageError: ``weights`` is of another enum.
    """
    if isinstance(weights, WeightsEnum):
        if enum is None or not isinstance(weights, enum):
            raise UsageError(f"weights {weights} are not for this architecture; expected {enum and enum.__name__}")
        return weights
    if enum is not None and isinstance(weights, str):
        return enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))
    return None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.pth``, ``.pt``, ``.th`` or ``.safetensors`` file.

    The wrappers ``state_dict`` and ``model`` are opened, the prefixes ``module.`` and ``_orig_mod.`` removed.

    Raises:
        DataError: the file is missing, damaged or holds no state dict.
    """
    content = read_file(path)
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: no state dict; expected tensors by name, or such under 'state_dict' or 'model'")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def load_state(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``state`` into ``net``, all or nothing.

    Batch norms may lack ``num_batches_tracked``, as frozen ones do.

    Raises:
        DataError: names or shapes differ; the message gives the first of each.
    """
    expected = net.state_dict()
    counters = {name for name in expected.keys() ^ state.keys() if name.endswith(".num_batches_tracked")}
    problems = []
    if missing := [name for name in expected if name not in state and name not in counters]:
        problems.append(f"lacks {len(missing)} tensors ({missing[0]}, ...)")
    if unexpected := [name for name in state if name not in expected and name not in counters]:
        problems.append(f"has {len(unexpected)} unexpected tensors ({unexpected[0]}, ...)")
    shapes = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if shapes:
        name = shapes[0]
        problems.append(f"{name} has shape {tuple(state[name].shape)}; expected {tuple(expected[name].shape)}")
    if problems:
        raise DataError(f"{source}: does not fit the network: {'; '.join(problems)}")
    net.load_state_dict({name: tensor for name, tensor in state.items() if name not in counters}, strict=False)
