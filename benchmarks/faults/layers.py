"""Layers with random geometry, dtype and weights are decomposed."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faults.campaign import Campaign, Outcome
from norton_det.decompositions import DECOMPOSITIONS, Decomposition
from norton_det.decompositions.conv import DenseLayer
from norton_det.errors import DataError, UsageError

_RUNS = 3
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Weights(NamedTuple):
    change: Callable[[Tensor, Random], object]
    refused: bool = False


def _repeat(weight: Tensor, random: Random) -> None:
    weight[:] = weight[:1].clone()


def _separable(weight: Tensor, random: Random) -> None:
    weight[:] = torch.ones_like(weight) * weight.flatten(1)[:, :1].view(-1, *[1] * (weight.dim() - 1))


def _value(value: float) -> Callable[[Tensor, Random], object]:
    def change(weight: Tensor, random: Random) -> None:
        weight.view(-1)[random.randrange(weight.numel())] = value

    return change


def _scale(decades: int) -> Callable[[Tensor, Random], object]:
    def change(weight: Tensor, random: Random) -> None:
        narrow = weight.dtype == torch.float16  # beyond four decades it has other digits, or none
        weight.mul_(10.0 ** (decades / 3 if narrow else decades))

    return change


_WEIGHTS = {
    "random": _Weights(lambda weight, random: None),
    "filters of different scale": _Weights(
        lambda weight, random: weight.mul_(torch.logspace(-3, 3, len(weight)).view(-1, *[1] * (weight.dim() - 1)))
    ),
    "small": _Weights(_scale(-6)),
    "large": _Weights(_scale(6)),
    "a filter of zeros": _Weights(lambda weight, random: weight[random.randrange(len(weight))].zero_()),
    "all zeros": _Weights(lambda weight, random: weight.zero_()),
    "equal filters": _Weights(_repeat),
    "constant filters": _Weights(_separable),
    "one weight far above the others": _Weights(_value(1e3)),
    "NaN": _Weights(_value(float("nan")), refused=True),
    "infinite": _Weights(_value(float("inf")), refused=True),
}


def _layer(random: Random) -> DenseLayer:
    bias = random.random() < 0.5
    if random.random() < 0.2:
        return nn.Linear(random.randint(1, 40), random.randint(1, 40), bias)
    kernel = random.choice([(1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 4)])
    groups = random.choice([1] * 8 + [2])
    return nn.Conv2d(
        groups * random.randint(1, 20),
        groups * random.randint(1, 20),
        kernel,
        stride=random.choice([1, 1, 2]),
        padding=random.randint(0, 3),
        dilation=random.choice([1, 1, 2]),
        groups=groups,
        bias=bias,
        padding_mode=random.choice(["zeros", "zeros", "reflect", "circular"]),
    )


def run(prepared: None, index: int, random: Random, folder: Path) -> Outcome:
    """Decompose one layer three times, compare the blocks, and look at what they compute."""
    torch.manual_seed(random.randrange(2**31))
    name, dtype, method = (random.choice([*names]) for names in (_WEIGHTS, _DTYPES, DECOMPOSITIONS))
    layer, weights = _layer(random), _WEIGHTS[name]
    with torch.no_grad():
        layer = layer.to(dtype)
        weights.change(layer.weight, random)
    rank, seed = random.choice([1, 1, 2, 3, 4, 8, 16]), random.randrange(1000)
    kind = f"{method}: {name}"
    try:
        blocks = [DECOMPOSITIONS[method].from_layer(layer, rank, seed=seed) for _ in range(_RUNS)]
    except DataError as error:
        return Outcome(kind, weights.refused and "not finite" in str(error), f"refused: {error}")
    except UsageError as error:
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
        linear = isinstance(layer, nn.Linear) and method != "svd"
        above = rank > layer.weight[0].numel()
        return Outcome(f"{method}: no such block", grouped or linear or above, f"refused: {error}")
    if weights.refused:
        return Outcome(kind, False, f"{layer} was taken")
    hashes = {sha256(b"".join(_bytes(each) for each in block.state_dict().values())).hexdigest() for block in blocks}
    found = "not the same each time" if len(hashes) > 1 else _wrong(layer, blocks)
    return Outcome(kind, not found, f"{layer}, {dtype}, rank {rank}: {found or f'SHA-256 {hashes.pop()}'}")


def _wrong(layer: DenseLayer, blocks: list[Decomposition]) -> str:
    """Return what is wrong with the blocks that were made of one layer, all alike; "" if nothing is."""
    block, dense = blocks[0], blocks[0].to_dense()
    tensors = [*block.state_dict().values(), dense.weight]
    if not all(tensor.isfinite().all() for tensor in tensors):
        return "values that are not finite"
    empty = (dense.weight.flatten(1) == 0).all(1) & (layer.weight.flatten(1) != 0).any(1)
    if empty.any():
        return f"zeros in place of filters {empty.nonzero().flatten().tolist()}"
    x = torch.randn((2, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 24, 24))
    with torch.no_grad():
        wide, reference = block.double()(x.double()), dense.double()(x.double())
    scale = reference.abs().max().clamp(min=1e-30)
    return "" if (wide - reference).abs().max() <= 1e-2 * scale else "other outputs than its own dense form"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


CAMPAIGN = Campaign(
    name="layers",
    title="Random layers through every decomposition",
    promise="finite factors, no filter replaced by zeros, the same bits three times; weights that are not finite are "
    "refused by name.",
    size=2000,
    quick=40,
    seconds=300,
    prepare=lambda folder: None,
    run=run,
)
