"""One file for a compressed network: safetensors, with the spec in its header."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from norton_det.build import build, check_described
from norton_det.errors import DataError, UsageError
from norton_det.spec import Spec
from norton_det.weights import load_state, read_file

SPEC_KEY = "norton_det.spec"


def save(net: nn.Module, spec: Spec, path: str | Path) -> None:
    """Write a network to a safetensors file from which :func:`load` rebuilds it, without flags and without pickle.

    Args:
        net: the network that ``spec`` describes.
        spec: what :func:`norton_det.compress` returned with it.
        path: the file; its folder must exist. An older file stays whole until the new one is complete.

    Raises:
        UsageError: the network does not have the shapes of the spec, or an option of the spec is no JSON value.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    check_described(net, spec)
    metadata = {SPEC_KEY: spec.to_json(), "format": "pt"}
    write_atomically(path, lambda file: save_file(state, file, metadata))


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Spec]:
    """Rebuild a network from a file of :func:`save`, or from a training checkpoint (``.pth``) that holds a spec.

    Args:
        path: the file.
        device: where the network is put.

    Returns:
        The network in evaluation mode, and its spec.

    Raises:
        DataError: the file is missing, damaged, or was not written by this package; or its spec cannot be built.
    """
    state = read_file(path)
    spec = read_spec(path, state)
    tensors = state["model"] if isinstance(state.get("model"), Mapping) else state
    try:
        with torch.random.fork_rng(devices=[]):
            net = build(spec)
    except UsageError as error:
        raise DataError(f"{path}: spec cannot be built: {error}") from None
    load_state(net, tensors, path)
    return net.to(device).eval(), spec


def read_spec(path: str | Path, content: Mapping[str, Any] | None = None) -> Spec:
    """Read the spec of a file of :func:`save` or of a training checkpoint.

    Args:
        path: the file.
        content: what :func:`norton_det.weights.read_file` returned for it, where that is at hand.

    Raises:
        DataError: the file is missing, damaged, or holds no spec.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    if Path(path).suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(SPEC_KEY)
        except SafetensorError as error:
            raise DataError(f"{path}: damaged, or no safetensors file: {error}") from None
    else:
        text = (content if content is not None else read_file(path)).get("spec")
    if not isinstance(text, str):
        raise DataError(f"{path}: holds no spec; expected a file written by norton_det.save or a training checkpoint")
    try:
        return Spec.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def has_spec(path: str | Path) -> bool:
    """Tell whether ``path`` is a file that :func:`load` reads: one with a spec."""
    if not Path(path).is_file():
        return False
    try:
        read_spec(path)
    except DataError:
        return False
    return True


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name in the folder of ``path``, then rename: a reader never sees half a file.

    Raises:
        UsageError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: folder {path.parent} does not exist")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(temporary)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, content: object) -> None:
    """Write ``content`` as JSON, atomically."""
    write_atomically(path, lambda name: Path(name).write_text(json.dumps(content, indent=1) + "\n"))
