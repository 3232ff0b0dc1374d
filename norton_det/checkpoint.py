"""One file for a compressed network: safetensors, with the spec in its header."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from norton_det.deployment.deploy import deploy
from norton_det.deployment.fold_batch_norm import fold_structure
from norton_det.deployment.record import DEPLOYED, Deployment, deployment_of
from norton_det.deployment.restore import restore
from norton_det.errors import DataError, UsageError
from norton_det.files import write_atomically
from norton_det.models.weights import load_state, read_file
from norton_det.spec import Spec
from norton_det.structure.build import build
from norton_det.structure.describe import check_described

SPEC_KEY, DEPLOYMENT_KEY = "norton_det.spec", "norton_det.deployment"


def save(net: nn.Module, spec: Spec, path: str | Path) -> None:
    """Write a network to a safetensors file from which :func:`load` rebuilds it, without flags and without pickle.

    A deployed network is written as what it was before the implementations were chosen, batch norms folded, with the
    choice in the header.

    Args:
        net: the network that ``spec`` describes, or what :func:`norton_det.deploy` made of it.
        spec: what :func:`norton_det.compress` returned with it.
        path: the file; its folder must exist. An older file stays whole until the new one is complete.

    Raises:
        UsageError: the network does not have the shapes of the spec, or an option of the spec is no JSON value.
    """
    metadata = {SPEC_KEY: spec.to_json(), "format": "pt"}
    if deployment := deployment_of(net):
        metadata[DEPLOYMENT_KEY] = deployment.to_json()
        state = deployment.state
        _check_folded(deployment, spec)
    else:
        state = net.state_dict()
        check_described(net, spec)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata))


def _check_folded(deployment: Deployment, spec: Spec) -> None:
    net = build(spec, "meta")
    fold_structure(net, deployment.folded)
    try:
        load_state(net, {name: tensor.to("meta") for name, tensor in deployment.state.items()}, "deployed model")
    except DataError as error:
        raise UsageError(f"{error} (as arch={spec.arch!r})") from None


def load(
    path: str | Path, device: torch.device | str = "cpu", *, redeploy: Any = None, deployed: bool = True
) -> tuple[nn.Module, Spec]:
    """Rebuild a network from a file of :func:`save`, or from a training checkpoint (``.pth``) that holds a spec.

    The file of a deployed network gives it back as it was deployed, on this machine or another.

    Args:
        path: the file.
        device: where the network is put.
        redeploy: example inputs, as for :func:`norton_det.deploy`: the network is deployed for them, by measuring here.
        deployed: whether a deployed network is wanted as well; without, its file is refused.

    Returns:
        The network in evaluation mode, and its spec.

    Raises:
        DataError: the file is missing, damaged, or was not written by this package; or its spec cannot be built; or it
            is that of a deployed network, which is not wanted.
    """
    state = read_file(path)
    spec = read_spec(path, state, deployed=deployed)
    deployment = _read_deployment(path)
    tensors = state["model"] if isinstance(state.get("model"), Mapping) else state
    folded = deployment.folded if deployment else {}
    try:
        with torch.random.fork_rng(devices=[]):
            net = build(spec)
        fold_structure(net, folded)
        load_state(net, tensors, path)
        net.to(device).eval()
        if deployment and redeploy is None:
            net = restore(net, deployment)
    except UsageError as error:
        raise DataError(f"{path}: spec cannot be built: {error}") from None
    if redeploy is not None:
        fast: Any = deploy(net, redeploy)
        fast.deployment = replace(fast.deployment, folded={**folded, **fast.deployment.folded})
        return fast, spec
    return net, spec


def read_spec(path: str | Path, content: Mapping[str, Any] | None = None, *, deployed: bool = False) -> Spec:
    """Read the spec of a file of :func:`save` or of a training checkpoint.

    Args:
        path: the file.
        content: what :func:`norton_det.models.weights.read_file` returned for it, where that is at hand.
        deployed: whether that of a deployed network is wanted as well.

    Raises:
        DataError: the file is missing, damaged, or holds no spec; or it is that of a deployed network, which is not
            wanted.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    header = _read_header(path)
    text = header.get(SPEC_KEY)
    if Path(path).suffix != ".safetensors":
        text = (content if content is not None else read_file(path)).get("spec")
    if not isinstance(text, str):
        raise DataError(f"{path}: holds no spec; expected a file written by norton_det.save or a training checkpoint")
    if DEPLOYMENT_KEY in header and not deployed:
        raise DataError(f"{path}: {DEPLOYED}; expected the file that it was deployed from")
    try:
        return Spec.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_deployment(path: str | Path) -> Deployment | None:
    text = _read_header(path).get(DEPLOYMENT_KEY)
    try:
        return None if text is None else Deployment.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_header(path: str | Path) -> Mapping[str, str]:
    """Return the texts in the header of a safetensors file; other files have none."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise DataError(f"{path}: damaged, or no safetensors file: {error}") from None


def has_spec(path: str | Path) -> bool:
    """Tell whether ``path`` is a file that :func:`load` reads: one with a spec."""
    if not Path(path).is_file():
        return False
    try:
        read_spec(path, deployed=True)
    except DataError:
        return False
    return True
