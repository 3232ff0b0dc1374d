"""One file for a compressed network: safetensors, with the spec in its header."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from norton_det.deployment.deploy import deploy
from norton_det.deployment.fold_batch_norm import fold_structure
from norton_det.deployment.record import DEPLOYED, Deployment, deployment_of
from norton_det.deployment.restore import restore
from norton_det.errors import DataError, UsageError
from norton_det.files import write_atomically
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.tensor_files import (
    DEPLOYMENT_KEY,
    SHA256_KEY,
    SPEC_KEY,
    is_safetensors,
    read_file,
    read_header,
    sha256_of,
)
from norton_det.models.weights import load_state
from norton_det.spec import Spec
from norton_det.structure.build import build, build_network
from norton_det.structure.describe import described


def save(net: nn.Module, spec: Spec, path: str | Path) -> None:
    """Write a network to a safetensors file from which :func:`load` rebuilds it, without flags and without pickle.

    The header holds the spec with the format version, and the SHA-256 of the tensors. A deployed network is written as
    what it was before the implementations were chosen, batch norms folded, with the choice in the header.

    Args:
        net: the network that ``spec`` describes, or what :func:`norton_det.deploy` made of it.
        spec: what :func:`norton_det.compress` returned with it.
        path: the file; its folder must exist. An older file stays whole until the new one is complete.

    Raises:
        UsageError: the network does not have the shapes of the spec, or an option of the spec is no JSON value.

    Example:
        >>> import tempfile
        >>> import norton_det as nd
        >>> net, spec = nd.compress(None, arch="resnet56_cifar", rank=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nd.save(net, spec, f"{folder}/r56.safetensors")
        ...     loaded, again = nd.load(f"{folder}/r56.safetensors")
        >>> again == spec
        True
    """
    metadata = {SPEC_KEY: spec.to_json(), "format": "pt"}
    architecture = ARCHITECTURES[spec.arch]
    if deployment := deployment_of(net):
        metadata[DEPLOYMENT_KEY] = deployment.to_json()
        state = deployment.state
        _check_folded(deployment, spec, architecture)
    else:
        state = net.state_dict()
        described(net, architecture, spec)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    metadata[SHA256_KEY] = sha256_of(tensors)
    write_atomically(path, lambda file: save_file(tensors, file, metadata))


def _check_folded(deployment: Deployment, spec: Spec, architecture: Architecture) -> None:
    net = build_network(spec, architecture, "meta").module
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
        deployed: whether the file of a deployed network is accepted as well.

    Returns:
        The network in evaluation mode, with tensors of the types in the file, and its spec.

    Raises:
        DataError: the file is missing, damaged, of a newer format version, or was not written by this package; or its
            spec cannot be built; or it is that of a deployed network, which is not accepted.

    Example:
        See :func:`save`.

        >>> import norton_det as nd
        >>> nd.load("missing.safetensors")
        Traceback (most recent call last):
        norton_det.errors.DataError: missing.safetensors: no such file; expected one written by norton_det.save
    """
    spec, tensors = read_network(path, deployed=deployed)
    deployment = _read_deployment(path)
    folded = deployment.folded if deployment else {}
    try:
        with torch.random.fork_rng(devices=[]):
            net = build(spec)
        fold_structure(net, folded)
        load_state(net, tensors, path, keep_precision=True)
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


def read_network(
    path: str | Path, *, deployed: bool = False, content: Mapping[str, Any] | None = None
) -> tuple[Spec, Mapping[str, Tensor]]:
    """Read the spec and the tensors of a file, each once; the tensors' SHA-256 is checked.

    Args:
        path: a file of :func:`save` or a training checkpoint.
        deployed: whether the file of a deployed network is accepted as well.
        content: what :func:`norton_det.models.tensor_files.read_file` returned for the file; None reads it.

    Raises:
        DataError: as of :func:`load`.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    header = read_header(path)
    content = read_file(path) if content is None else content
    spec = _parse_spec(path, header.get(SPEC_KEY, content.get("spec")), header, deployed)
    tensors = content["model"] if isinstance(content.get("model"), Mapping) else content
    return spec, tensors


def read_spec(path: str | Path, *, deployed: bool = False) -> Spec:
    """Read the spec of a file of :func:`save` or of a training checkpoint; of the former only the header is read.

    Args:
        path: the file.
        deployed: whether the file of a deployed network is accepted as well.

    Raises:
        DataError: the file is missing, damaged, of a newer format version, or holds no spec; or it is that of a
            deployed network, which is not accepted.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    header = read_header(path)
    return _parse_spec(path, _spec_text(path, header), header, deployed)


def _spec_text(path: str | Path, header: Mapping[str, str]) -> Any:
    return header.get(SPEC_KEY) if is_safetensors(path) else read_file(path).get("spec")


def _parse_spec(path: str | Path, text: Any, header: Mapping[str, str], deployed: bool) -> Spec:
    if not isinstance(text, str):
        raise DataError(f"{path}: holds no spec; expected a file written by norton_det.save or a training checkpoint")
    if DEPLOYMENT_KEY in header and not deployed:
        raise DataError(f"{path}: {DEPLOYED}; expected the file that it was deployed from")
    try:
        return Spec.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_deployment(path: str | Path) -> Deployment | None:
    text = read_header(path).get(DEPLOYMENT_KEY)
    try:
        return None if text is None else Deployment.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def has_spec(path: str | Path) -> bool:
    """Tell whether ``path`` is a readable file with a spec, of whatever format version."""
    if not Path(path).is_file():
        return False
    try:
        return isinstance(_spec_text(path, read_header(path)), str)
    except DataError:
        return False
