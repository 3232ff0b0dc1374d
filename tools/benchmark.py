"""Time what this package does against what a user would do otherwise, both in this process, in turn.

The alternatives loop in Python, so they are timed on a sample that is stated, and scaled to the whole.
"""

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from norton_det.cli import Parser, command, table
from norton_det.criteria.elimination import eliminate
from norton_det.criteria.pabs import pabs_distance
from norton_det.decompositions.als import cp_decompose
from norton_det.timing import time_alternating

REPEATS = 3


@dataclass
class Row:
    """One comparison; seconds are medians."""

    name: str
    ours: float
    other: float
    ratio: float
    detail: str


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, time and print."""
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4], help="(default: 1 4)")
    parser.add_argument("--json", action="store_true", help="print a JSON list of rows")
    args = parser.parse_args(argv)
    chosen = BENCHMARKS if args.what == "all" else {args.what: BENCHMARKS[args.what]}
    torch.manual_seed(0)
    rows = [benchmark(rank) for benchmark in chosen.values() for rank in args.ranks]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    cells = [(row.name, f"{row.ours:.3f}", f"{row.other:.1f}", f"{row.ratio:.0f}", row.detail) for row in rows]
    print(table(("benchmark", "ours, s", "other, s", "ratio", ""), cells))


def decompose(rank: int, sample: int = 2) -> Row:
    """Decompose the sixteen 3x3 convolutions of a ResNet-50; other: tensorly's parafac, filter by filter."""
    import tensorly as tl
    from tensorly.decomposition import parafac

    modules = resnet50().modules()
    weights = [m.weight.detach() for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    filters = [w[o].double().numpy() for w in weights for o in range(sample)]
    errors: dict[str, float] = {}

    def ours() -> None:
        fits = [(w.double(), cp_decompose(w, rank).reconstruct()) for w in weights]
        errors["ours"] = float(np.mean([_nmse(w, fit) for w, fit in fits]))

    def other() -> None:
        fits = [tl.cp_to_tensor(parafac(f, rank, n_iter_max=300, init="random", random_state=0)) for f in filters]
        pairs = zip(filters, fits, strict=True)
        errors["other"] = float(np.mean([((f - g) ** 2).sum() / (f**2).sum() for f, g in pairs]))

    count = sum(len(w) for w in weights)
    row = _row(f"decompose ResNet-50, rank {rank}", ours, other, count / len(filters))
    row.detail = f"NMSE {errors['ours']:.4f} / {errors['other']:.4f}; other on {len(filters)} of {count} filters"
    return row


def _nmse(weight: Tensor, fit: Tensor) -> float:
    error = (weight - fit).flatten(1).square().sum(1) / weight.flatten(1).square().sum(1)
    return error.mean().item()


def similarity(rank: int, filters: int = 512, sample: int = 24) -> Row:
    """Compute PABS of 512 filters and keep a quarter; other: scipy's subspace_angles, pair by pair, no elimination."""
    from scipy.linalg import subspace_angles

    factors = tuple(torch.randn(filters, n, rank, dtype=torch.float64) for n in (filters, 3, 3))
    arrays = [factor[:sample].numpy() for factor in factors]
    pairs = [(i, j) for i in range(sample) for j in range(i)]
    found: dict[str, list[float]] = {}

    def ours() -> None:
        distance = pabs_distance(factors)
        eliminate(distance, filters // 4)
        found["ours"] = [distance[i, j].item() for i, j in pairs]

    def other() -> None:
        found["other"] = [sum(float(subspace_angles(a[i], a[j])[0]) for a in arrays) for i, j in pairs]

    scale = filters * (filters - 1) / 2 / len(pairs)
    row = _row(f"similarity of {filters} filters, rank {rank}", ours, other, scale)
    difference = np.abs(np.subtract(found["ours"], found["other"])).max()
    row.detail = f"largest difference {difference:.0e}; other on {len(pairs)} pairs"
    return row


def _row(name: str, ours: Callable[[], None], other: Callable[[], None], scale: float) -> Row:
    seconds = time_alternating({"ours": ours, "other": other}, REPEATS)
    ratio = median(scale * b / a for a, b in zip(seconds["ours"], seconds["other"], strict=True))
    return Row(name, median(seconds["ours"]), scale * median(seconds["other"]), ratio, "")


BENCHMARKS: dict[str, Callable[[int], Row]] = {"decompose": decompose, "similarity": similarity}

if __name__ == "__main__":
    sys.exit(main())
