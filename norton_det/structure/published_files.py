"""Files of the publication's own implementation: compressed classifiers as tensors, without a spec.

A decomposed layer ``conv2`` is stored as ``conv2.feature.pointwise``, ``vertical`` and ``horizontal``, with its terms
one after another; ours has the terms of a filter side by side. The rank is beside the tensors, or in the file's name
(``resnet_50_pabs_[0.]+[0.1]*2_1_73.65.pt``); the widths are those of the tensors.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from norton_det.errors import DataError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.other_names import in_our_names
from norton_det.models.state_dicts import state_dict_in
from norton_det.spec import DecomposedLayer, Spec, is_count

_FACTORS = ("pointwise", "vertical", "horizontal")
_FACTOR = re.compile(rf"(.*)\.feature\.({'|'.join(_FACTORS)})\.weight")
_FILE = re.compile(r"_(?P<criterion>[a-z]+)_(?P<rates>\[.*\](?:\*\d+)?)_(?P<rank>\d+)(?:_(?P<top1>\d+\.\d+))?$")
_MARKS = {  # tensors by which a network is recognised, the first one counts
    "layer4.0.conv1.weight": "resnet50",
    "dense1.0.bn1.weight": "densenet40_cifar",
    "features.norm0.weight": "vgg16_bn_cifar",
    "layer3.17.bn1.weight": "resnet110_cifar",
    "layer3.8.bn1.weight": "resnet56_cifar",
}


def published_network(content: Mapping[str, Any], path: str | Path) -> tuple[Spec, dict[str, Tensor]] | None:
    """Return the spec and the tensors of a compressed network of the publication's implementation.

    Args:
        content: of the file, as it was read.
        path: the file.

    Returns:
        None where the file holds something else.

    Raises:
        DataError: the network is not known, its rank is told nowhere, or tensors do not fit each other.
    """
    if not is_published(content):
        return None
    state = state_dict_in(content, path, _MARKS)
    arch = next((arch for mark, arch in _MARKS.items() if mark in state), None)
    if arch is None:
        raise DataError(f"{path}: has factors of layers, but is none of the networks {', '.join(_MARKS.values())}")
    architecture = ARCHITECTURES[arch]
    told = _FILE.search(Path(path).stem)
    record = {**(told.groupdict() if told else {}), **_beside(content)}
    tensors = in_our_names(state, arch)
    rank = _rank(tensors, architecture, record, path)
    layers = {match[1] for name in tensors if (match := _FACTOR.fullmatch(name))}
    tensors = {_without_feature(name): _by_filters(name, tensor, rank, path) for name, tensor in tensors.items()}
    widths = widths_in(tensors, architecture, dict.fromkeys(layers, rank))
    classifier = f"{architecture.classifier}.weight"
    if classifier not in tensors:
        raise DataError(f"{path}: lacks {classifier}; expected all layers of a {arch}")
    full = architecture.plan.widths
    spec = Spec(
        arch,
        len(tensors[classifier]),
        {layer.name: DecomposedLayer("cp", rank) for layer in architecture.plan.layers if layer.name in layers},
        widths={group: width for group, width in widths.items() if width < full[group]},
        options=_shortcuts(architecture, widths),
        provenance={"source": Path(path).name, "published": record},
    )
    return spec, tensors


def is_published(content: Mapping[str, Any]) -> bool:
    """Tell whether what was read from a file has layers as the publication's implementation stores them."""
    return any(_FACTOR.fullmatch(name) for name in _names_in(content))


def _names_in(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all tensors in a file."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _names_in(value)
        elif isinstance(value, Tensor):
            yield str(name)


def _beside(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return rank and rates that are stored beside the tensors."""
    names = {"rank": "rank", "compress_rate": "rates"}
    return {ours: content[name] for name, ours in names.items() if isinstance(content.get(name), (int, str, list))}


def _rank(
    tensors: Mapping[str, Tensor], architecture: Architecture, record: Mapping[str, Any], path: str | Path
) -> int:
    """Return the rank of all layers: as it is told, or by the norm behind a layer.

    Raises:
        DataError: neither, or it is no rank.
    """
    if "rank" in record:
        told = str(record["rank"])
        if not told.isdigit() or not is_count(int(told)):
            raise DataError(f"{path}: rank is {record['rank']!r}; expected a positive integer")
        return int(told)
    for rank in ranks_in(tensors, architecture, "feature.pointwise").values():
        return rank
    raise DataError(f"{path}: tells no rank; expected it beside the tensors, or in the name: ..._[rates]_RANK.pt")


def _without_feature(name: str) -> str:
    return name.replace(".feature.", ".") if _FACTOR.fullmatch(name) else name


def _by_filters(name: str, tensor: Tensor, rank: int, path: str | Path) -> Tensor:
    """Return a factor (R * O, ...), which is stored term by term, filter by filter."""
    if not _FACTOR.fullmatch(name):
        return tensor
    if len(tensor) % rank:
        raise DataError(f"{path}: {name} has {len(tensor)} channels; expected a multiple of the rank {rank}")
    terms: Tensor = tensor.unflatten(0, (rank, -1))
    return terms.transpose(0, 1).flatten(0, 1)


def ranks_in(tensors: Mapping[str, Tensor], architecture: Architecture, factor: str = "pointwise") -> dict[str, int]:
    """Return the ranks of CP blocks, by the number of their terms and the width of the norm behind them.

    Args:
        tensors: by our names.
        architecture: of the network.
        factor: the name of the convolution that has the terms.
    """
    plan = architecture.plan
    alone = {layer.reads[0]: layer.name for layer in plan.layers if layer.in_place and len(layer.reads) == 1}
    ranks = {}
    for layer in plan.layers:
        terms, norm = (
            tensors.get(f"{layer.name}.{factor}.weight"),
            tensors.get(f"{alone.get(layer.writes or '')}.weight"),
        )
        if terms is not None and norm is not None:
            ranks[layer.name] = len(terms) // len(norm)
    return ranks


def widths_in(
    tensors: Mapping[str, Tensor], architecture: Architecture, ranks: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the width of each channel group by the first layer that writes it; groups whose layer is missing are full.

    Args:
        tensors: by our names.
        architecture: of the network.
        ranks: of the layers that are CP blocks.
    """
    plan, ranks = architecture.plan, ranks or {}
    widths = dict(plan.widths)
    for group in plan.widths:
        writer = plan.writers(group)[0]
        tensor = tensors.get(f"{writer}.pointwise.weight" if writer in ranks else f"{writer}.weight")
        if tensor is not None:
            widths[group] = len(tensor) // ranks.get(writer, 1)
    return widths


def _shortcuts(architecture: Architecture, widths: Mapping[str, int]) -> dict[str, Any]:
    """Return the shortcuts between stages of the CIFAR ResNets as options: they depend on the widths alone.

    The narrower side is padded with zeros to the width of the other one, or cropped, in the middle.
    """
    shortcuts = {}
    for layer in architecture.plan.layers:
        if layer.name.endswith(".shortcut") and layer.writes is not None:
            given, made = widths[layer.reads[0]], widths[layer.writes]
            pad = (made - given) // 2
            index = [i - pad if 0 <= i - pad < given else -1 for i in range(made)]
            rest = architecture.plan.widths[layer.writes] - made
            shortcuts[layer.writes] = index + [-1] * rest
    narrowed = any(widths[group] < width for group, width in architecture.plan.widths.items())
    return {"shortcuts": shortcuts} if shortcuts and narrowed else {}
