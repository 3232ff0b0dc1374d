"""Time what this package does against what a user would do otherwise, both in this process, in turn.

The alternatives loop in Python, so they are timed on a sample that is stated, and scaled to the whole.
"""

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

import norton_det as nd
from norton_det.cli import Parser, command, table
from norton_det.config import read_config
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
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4], help="of decompose, similarity (default: 1 4)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 800], help="of backbone (default: 224 800)")
    parser.add_argument("--batch-size", type=int, default=1, help="of backbone (default: 1)")
    parser.add_argument("--json", action="store_true", help="print a JSON list of rows")
    args = parser.parse_args(argv)
    chosen = BENCHMARKS if args.what == "all" else {args.what: BENCHMARKS[args.what]}
    torch.manual_seed(0)
    rows = [row for benchmark in chosen.values() for row in benchmark(args)]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    cells = [(row.name, f"{row.ours:.3f}", f"{row.other:.3f}", f"{row.ratio:.1f}", row.detail) for row in rows]
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


def backbone(size: int, batch: int) -> Row:
    """Run the 0.92G ResNet-50, deployed; other: the dense one, deployed the same way."""
    spec = read_config(Path(__file__).parent.parent / "configs" / "imagenet" / "resnet50_0.92g.yaml").spec()
    images = torch.randn(batch, 3, size, size)
    nets = {name: nd.deploy(nd.build(s), images) for name, s in (("ours", spec), ("other", nd.Spec("resnet50", 1000)))}

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            with torch.inference_mode():
                nets[name](images)

        return once

    row = _row(f"backbone 0.92G, {batch} x {size}x{size}", run("ours"), run("other"), 1)
    done: Any = nets["ours"].deployment
    forms = Counter(block.form for block in done.blocks)
    row.detail = ", ".join(f"{count} {form}" for form, count in forms.most_common())
    row.detail += f", {done.memory_format}; undeployed {done.milliseconds['given']:.0f} ms"
    return row


def _row(name: str, ours: Callable[[], None], other: Callable[[], None], scale: float) -> Row:
    seconds = time_alternating({"ours": ours, "other": other}, REPEATS)
    ratio = median(scale * b / a for a, b in zip(seconds["ours"], seconds["other"], strict=True))
    return Row(name, median(seconds["ours"]), scale * median(seconds["other"]), ratio, "")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "decompose": lambda args: [decompose(rank) for rank in args.ranks],
    "similarity": lambda args: [similarity(rank) for rank in args.ranks],
    "backbone": lambda args: [backbone(size, args.batch_size) for size in args.sizes],
}

if __name__ == "__main__":
    sys.exit(main())
