"""The state dict in a file of any training program: under which key it lies, and how its names begin."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.errors import DataError, shown
from norton_det.models.tensor_files import read_file

logger = logging.getLogger(__name__)

_KEYS = (
    *("model", "state_dict", "net", "network", "model_state_dict", "model_state"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),  # a moving average comes after the network itself
)
"""Under which programs store a state dict, in the order of preference."""
_PREFIXES = frozenset({"module", "model", "state_dict", "net", "network", "ema", "model_ema"})
"""Of what holds a whole network: all names begin with them."""
_WRAPPED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch's wrappers put into names, wherever they are."""
_BESIDE = frozenset({"total_ops", "total_params", "n_averaged"})
"""Buffers that are no part of a network: of the counter thop, and of torch's moving average."""


def read_state_dict(path: str | Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Read the state dict in a ``.pth``, ``.pt``, ``.th`` or ``.safetensors`` file.

    It may lie under a key such as ``model`` or ``state_dict``, whatever is stored beside it. Where there are several,
    ``model`` is read and not the moving average ``model_ema``, as by torchvision's scripts. What wrappers of networks
    put before the names (``module.``, ``_orig_mod.``, ...) is removed, in any order, and so are counters that are no
    part of a network. The log says what was chosen and what was left out.

    Args:
        path: the file.
        names: tensors of the network. Once one of them is there, no more prefixes are removed.

    Raises:
        DataError: the file is missing, damaged or holds no state dict.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "net": {"module._orig_mod.weight": torch.ones(2)}}, f"{folder}/x.pth")
        ...     read_state_dict(f"{folder}/x.pth")
        {'weight': tensor([1., 1.])}
    """
    return state_dict_in(read_file(path), path, names)


def state_dict_in(whole: Mapping[str, Any], path: str | Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the state dict in what was read from a file; see :func:`read_state_dict`.

    Args:
        whole: the content of the file.
        path: the file, for messages.
        names: tensors of the network.

    Raises:
        DataError: there is no state dict.
    """
    (key, content), *others = _under_keys(whole) or [("", whole)]
    if others:
        rest = ", ".join(key for key, _ in others)
        logger.info("%s: the weights under %r are used; not those under %s", path, key, rest)
    state = {name: value for name, value in content.items() if str(name).rpartition(".")[2] not in _BESIDE}
    wrong = [f"{name!r} is a {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        problem = wrong[0] if wrong else "there is no tensor"
        place = f" under {key!r}" if key else ""
        expected = "tensors by name, alone or under 'state_dict'"
        raise DataError(f"{path}: no state dict{place}: {problem}; expected {expected}")
    if len(state) < len(content):
        left = [name for name in content if name not in state]
        logger.info("%s: %d counters are not used (%s, ...)", path, len(left), left[0])
    return _without_prefixes(path, state, names)


def check_tensors(state: Mapping[Any, Any], source: str | Path) -> None:
    """Check that a state dict has tensors by name, each of them dense and with values of its own.

    Views of a few values as many, which a small file can hold, would take the memory of the many.

    Args:
        state: the tensors by name.
        source: where they come from, for the messages.

    Raises:
        DataError: it has not; the message names the tensor.
    """
    size, storages = 0, {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(f"{source}: {shown(name)} is a {type(tensor).__name__}; expected tensors by name")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise DataError(f"{source}: {name} is {tensor.layout} of {tensor.dtype}; expected a dense tensor")
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            size += tensor.numel() * tensor.itemsize
            storages[storage.data_ptr()] = storage.nbytes()
    own = sum(storages.values())
    if size > 2 * own:  # two names of one tensor are well
        raise DataError(f"{source}: tensors of {size:,} bytes share {own:,}; expected values of their own")


def _has_tensors(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _under_keys(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the state dicts in a file with their keys ("model.state_dict"), in the order of preference."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for key in _KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and inner is not content:
            deeper = [(f"{key}.{name}", state) for name, state in _under_keys(inner)]
            found += deeper or ([(key, inner)] if _has_tensors(inner) else [])
    return found


def _without_prefixes(path: str | Path, state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    parts = {name: [part for part in str(name).split(".") if part not in _WRAPPED] for name in state}

    def named() -> dict[str, Tensor]:
        return {".".join(parts[name]): tensor for name, tensor in state.items()}

    while named().keys().isdisjoint(names) and all(len(p) > 1 and p[0] in _PREFIXES for p in parts.values()):
        if len({p[0] for p in parts.values()}) > 1:
            break
        parts = {name: p[1:] for name, p in parts.items()}
    if len(named()) < len(state):
        raise DataError(f"{path}: two tensors have one name without prefixes; expected one network")
    return named()
