"""Benchmarks of decomposition and similarity of filters against loops over the filters, on a sample of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet50

from benchmarks.compare import CASES, Case, Settings, Side
from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.pruning.elimination import eliminate
from norton_det.pruning.pabs import pabs_distance

_PARAFAC_ITERATIONS = 300


def decompositions(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``decompose``."""
    for rank in settings.ranks:
        yield "decompose", {"rank": rank}


def similarities(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``similarity``."""
    for rank in settings.ranks:
        yield "similarity", {"rank": rank}


def decompose(rank: int, sample: int = 2) -> Case:
    """Return a case: decompose the 3x3 convolutions of a ResNet-50; other: tensorly's parafac for each filter."""
    torch.manual_seed(0)
    modules = resnet50().modules()
    weights = [m.weight.detach() for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    return _decomposition(f"decompose ResNet-50, rank {rank}", weights, rank, sample)


def decompose_layer(filters: int, channels: int, rank: int, sample: int = 4) -> Case:
    """Return a case: decompose a 3x3 convolution; other: tensorly's parafac for each filter."""
    weight = torch.randn(filters, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    return _decomposition(f"decompose {filters} filters of {channels} channels, rank {rank}", [weight], rank, sample)


def _decomposition(name: str, weights: list[Tensor], rank: int, sample: int) -> Case:
    count = sum(len(weight) for weight in weights)

    def ours() -> Side:
        errors: list[float] = []

        def run() -> None:
            fits = [cp_decompose(weight, rank) for weight in weights]
            samples = [CPFactors(*(factor[:sample] for factor in fit)).reconstruct() for fit in fits]
            errors[:] = [_nmse(w[:sample].double(), fit) for w, fit in zip(weights, samples, strict=True)]

        return Side(run, lambda: f"NMSE {np.mean(errors):.5f}")

    def other() -> Side:
        import tensorly as tl
        from tensorly.decomposition import parafac

        errors: list[float] = []

        def fit(filter_: NDArray[np.float64]) -> NDArray[np.float64]:
            options = {"n_iter_max": _PARAFAC_ITERATIONS, "init": "random", "random_state": 0}
            tensor: NDArray[np.float64] = tl.cp_to_tensor(parafac(filter_, rank, **options))
            return tensor

        def run() -> None:
            parts = [weight[:sample].double() for weight in weights]
            errors[:] = [_nmse(part, torch.from_numpy(np.stack([fit(f) for f in part.numpy()]))) for part in parts]

        return Side(run, lambda: f"other {np.mean(errors):.5f} on a sample of {sample} filters of each layer")

    return Case(name, ours, other, count / (sample * len(weights)))


def _nmse(weight: Tensor, fit: Tensor) -> float:
    error = (weight - fit).flatten(1).square().sum(1) / weight.flatten(1).square().sum(1)
    return error.mean().item()


def similarity(rank: int, filters: int = 512, sample: int = 24) -> Case:
    """Return a case: PABS of all filters and their elimination; other: scipy's subspace_angles for each pair."""
    generator = torch.Generator().manual_seed(0)
    sizes = (filters, 3, 3)
    factors = tuple(torch.randn(filters, n, rank, dtype=torch.float64, generator=generator) for n in sizes)
    pairs = [(i, j) for i in range(sample) for j in range(i)]
    distances = np.zeros((sample, sample))

    def ours() -> Side:
        results: list[Tensor] = []

        def run() -> None:
            results[:] = [pabs_distance(factors)]
            eliminate(results[0], filters // 4)

        def detail() -> str:
            result = results[0][:sample, :sample]
            reference = torch.from_numpy(distances + distances.T)
            same = torch.equal(eliminate(result, sample // 4), eliminate(reference, sample // 4))
            difference = (result - reference).abs().max()
            return f"largest difference {difference:.0e}, survivors {'the same' if same else 'differ'}"

        return Side(run, detail)

    def other() -> Side:
        from scipy.linalg import subspace_angles

        arrays = [factor[:sample].numpy() for factor in factors]

        def run() -> None:
            for i, j in pairs:
                distances[i, j] = sum(float(subspace_angles(a[i], a[j])[0]) for a in arrays)

        return Side(run, lambda: f"other on the {len(pairs)} pairs of {sample} filters")

    return Case(f"similarity of {filters} filters, rank {rank}", ours, other, filters * (filters - 1) / 2 / len(pairs))


CASES.register("decompose", decompose)
CASES.register("decompose-layer", decompose_layer)
CASES.register("similarity", similarity)
