"""One file for a compressed network: safetensors, with the spec in its header."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.decompositions.conv import pair
from norton_det.deployment.deploy import deploy
from norton_det.deployment.fold_batch_norm import fold_structure
from norton_det.deployment.precision import LOWER
from norton_det.deployment.record import DEPLOYED, Deployment, deployment_of
from norton_det.deployment.restore import restore
from norton_det.errors import DataError, UsageError, one_line
from norton_det.models import ARCHITECTURES
from norton_det.models.state_dicts import check_tensors
from norton_det.models.tensor_files import (
    DEPLOYMENT_KEY,
    SHA256_KEY,
    SPEC_KEY,
    is_safetensors,
    read_file,
    read_header,
    sha256_of,
    write_file,
)
from norton_det.models.weights import load_state
from norton_det.runtime.given import refuse_shared, unwrapped
from norton_det.spec import Spec, is_plain
from norton_det.storage import is_file
from norton_det.structure.attributes import differences
from norton_det.structure.build import build_checked
from norton_det.structure.describe import described
from norton_det.structure.equal_outputs import check_outputs
from norton_det.structure.network import Network
from norton_det.structure.published_files import is_published, published_network

_ROUNDING = 1e-6
"""Relative: what is multiplied out beforehand is rounded as the processor adds."""
_DEPLOY_AGAIN = "make the change before norton_det.deploy"


def save(net: nn.Module, spec: Spec, path: str | Path) -> None:
    """Write a network to a safetensors file from which :func:`load` rebuilds it, without flags and without pickle.

    The network is compared with what its spec builds before anything is written: types of modules, tensors, and the
    outputs on a small seeded example. Plain attributes that were changed since the spec was made, such as a score
    threshold, are put down in the file. The header holds the spec with the format version, and the SHA-256 of the
    tensors. A deployed network is written as what it was before the implementations were chosen, batch norms folded,
    with the choice in the header; layers that were not replaced are written as they are now.

    Args:
        net: the network that ``spec`` describes, or what :func:`norton_det.deploy` made of it; wrappers of torch are
            taken off.
        spec: what :func:`norton_det.compress` returned with it.
        path: the file; its folder must exist. An older file stays whole until the new one is complete.

    Raises:
        UsageError: the network is not what the spec builds, the message names the difference; or two layers share a
            tensor; or a replaced layer of a deployed network was changed since; or an option of the spec is no JSON
            value.

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
    spec.to_json()  # refuses what no file can hold
    net = unwrapped(net)
    refuse_shared(net)
    deployment = deployment_of(net)
    if deployment is None:
        network = described(net, ARCHITECTURES[spec.arch], spec)
        spec, state = network.spec, net.state_dict()
        check_outputs(network, _rebuilt(spec, state, None, "model"))
    else:
        spec, state, again = _deployed(net, spec, deployment)
        _check_deployed(net, again)
        check_outputs(Network(net, spec, ARCHITECTURES[spec.arch]), again)
    metadata = {SPEC_KEY: spec.to_json(), "format": "pt"}
    metadata |= {DEPLOYMENT_KEY: deployment.to_json()} if deployment else {}
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    metadata[SHA256_KEY] = sha256_of(tensors, metadata)
    write_file(path, tensors, metadata)


def _rebuilt(spec: Spec, state: Mapping[str, Tensor], deployment: Deployment | None, source: str | Path) -> nn.Module:
    """Return the network of a spec with these tensors, in evaluation mode, deployed if there is a record of it."""
    net = _folded(spec, state, deployment, source)
    return restore(net, deployment) if deployment else net


def _folded(spec: Spec, state: Mapping[str, Tensor], deployment: Deployment | None, source: str | Path) -> nn.Module:
    """Return the network of a spec with these tensors, in evaluation mode, with the norms folded that a record names.

    Raises:
        UsageError: the spec cannot be built, or there is no such norm.
        DataError: the tensors do not fit.
    """

    def check(net: nn.Module) -> None:
        fold_structure(net, deployment.folded if deployment else {})
        load_state(net, state, source)  # on "meta": names, shapes and types are compared

    net = build_checked(spec, ARCHITECTURES[spec.arch], check).module
    load_state(net, state, source, keep_precision=True)
    return net.float().eval() if deployment and deployment.dtype else net.eval()  # what lowers it starts from float32


def _state_of_deployed(net: nn.Module, deployment: Deployment) -> dict[str, Tensor]:
    """Return the tensors of a deployed network before its layers were replaced; others than theirs as they are now."""
    now = net.state_dict()
    return {
        name: now[name] if name in now and now[name].shape == tensor.shape else tensor
        for name, tensor in deployment.state.items()
    }


def _deployed(net: nn.Module, spec: Spec, deployment: Deployment) -> tuple[Spec, dict[str, Tensor], nn.Module]:
    """Return the spec, with plain attributes as they are now, the tensors of a file, and what it would be loaded as."""
    state = _state_of_deployed(net, deployment)
    again = _rebuilt(spec, state, deployment, "deployed model")
    changed = {each.path: each.given for each in differences(net, again) if is_plain(each.given)}
    if not changed:
        return spec, state, again
    spec = replace(spec, attributes={**spec.attributes, **changed})
    return spec, state, _rebuilt(spec, state, deployment, "deployed model")


def _check_deployed(net: nn.Module, again: nn.Module) -> None:
    """Check that a deployed network is what would be loaded.

    Raises:
        UsageError: a layer that was replaced, or anything else, was changed since; the message names it.
    """
    for difference in differences(net, again):
        raise UsageError(f"model was changed since norton_det.deploy: {difference}; {_DEPLOY_AGAIN}")
    now, loaded = net.state_dict(), again.state_dict()
    if names := sorted(now.keys() ^ loaded.keys()):
        raise UsageError(f"model was changed since norton_det.deploy: {names[0]} was added or removed; {_DEPLOY_AGAIN}")
    for name, tensor in now.items():
        expected = loaded[name].to(tensor.device)
        if tensor.dtype != expected.dtype:
            change = f"{name} is {tensor.dtype}; a file would give {expected.dtype}"
        elif not torch.allclose(tensor, expected, rtol=_ROUNDING, atol=_ROUNDING * float(expected.abs().max())):
            change = f"{name} has other values"
        else:
            continue
        raise UsageError(f"model was changed since norton_det.deploy: {change}; {_DEPLOY_AGAIN}")


def load(
    path: str | Path, device: torch.device | str = "cpu", *, redeploy: Any = None, deployed: bool = True
) -> tuple[nn.Module, Spec]:
    """Rebuild a network from a file of :func:`save`, or from a training checkpoint (``.pth``) that holds a spec.

    Files of the publication's own implementation (``resnet_50_pabs_..._1_73.65.pt``) are read as well.

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
    try:
        net = _folded(spec, tensors, deployment, path).to(device)
        if deployment is not None and redeploy is None:
            net = restore(net, deployment)
    except UsageError as error:
        raise DataError(f"{path}: spec cannot be built: {error}") from None
    except RuntimeError as error:  # of torch: sizes that it cannot count
        raise DataError(f"{path}: spec cannot be built: {one_line(error)}") from None
    if redeploy is not None:
        fast: Any = deploy(net, redeploy, dtype=LOWER[deployment.dtype] if deployment and deployment.dtype else None)
        if deployment is not None:
            record = fast.deployment
            fast.deployment = replace(record, folded={**deployment.folded, **record.folded})
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
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    header = read_header(path)
    content = read_file(path) if content is None else content
    if SPEC_KEY not in header and "spec" not in content and (published := published_network(content, path)):
        return published
    spec = _parse_spec(path, header.get(SPEC_KEY, content.get("spec")), header, deployed)
    tensors = content["model"] if isinstance(content.get("model"), Mapping) else content
    check_tensors(tensors, path)
    _check_counts(path, spec, tensors)
    return spec, tensors


def _check_counts(path: str | Path, spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    """Check that no rank and no number of classes is above what the tensors could hold."""
    most = max((tensor.numel() for tensor in tensors.values()), default=0)
    ranks = {f"rank of {name}": max(pair(rank)) for name, rank in spec.ranks.items()}
    for what, count in {"num_classes": spec.num_classes, **ranks}.items():
        if count > most:
            raise DataError(f"{path}: spec says {what} {count:,}; the largest tensor of the file has {most:,} values")


def read_spec(path: str | Path, *, deployed: bool = False) -> Spec:
    """Read the spec of a file of :func:`save` or of a training checkpoint; of the former only the header is read.

    Args:
        path: the file.
        deployed: whether the file of a deployed network is accepted as well.

    Raises:
        DataError: the file is missing, damaged, of a newer format version, or holds no spec; or it is that of a
            deployed network, which is not accepted.
    """
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected one written by norton_det.save")
    header = read_header(path)
    return _parse_spec(path, _spec_text(path, header), header, deployed)


def _spec_text(path: str | Path, header: Mapping[str, str]) -> Any:
    if is_safetensors(path):
        return header.get(SPEC_KEY)
    content = read_file(path)
    published = None if "spec" in content else published_network(content, path)
    return published[0].to_json() if published else content.get("spec")


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
    """Tell whether ``path`` is a file from which a spec follows, of whatever format version.

    Raises:
        DataError: it is a file, and damaged.
    """
    if not is_file(path):
        return False
    if is_safetensors(path):
        return SPEC_KEY in read_header(path)
    content = read_file(path)
    return isinstance(content.get("spec"), str) or is_published(content)
