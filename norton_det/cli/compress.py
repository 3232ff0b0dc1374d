"""Compress a network: CP-decompose its convolutions, prune whole filters, write one file that loads anywhere.

Examples:
  --arch resnet50 --weights IMAGENET1K_V2 --rank 1 --rates "[0.]+[0.1]*2+[0.4]*5+[0.75]*12" --output r50.safetensors
  --config configs/cifar10/resnet56_73m.yaml --weights resnet56.pth --output r56.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import norton_det as nd
from norton_det.checkpoint import has_spec
from norton_det.cli.common import Parser, check_counts, command, parse_with_config, rank_or_ranks
from norton_det.cost.complexity import Complexity
from norton_det.data.calibration_set import read_calibration_set
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.formatting import human, table
from norton_det.models import ARCHITECTURES
from norton_det.models.weights import initial_network
from norton_det.pruning import CRITERIA


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", help=f"one of: {', '.join(ARCHITECTURES)}")
    parser.add_argument(
        "--weights",
        help="state-dict file, training checkpoint, compressed file, or the name of "
        "torchvision's weights (default: seeded random)",
    )
    parser.add_argument(
        "--rank",
        type=rank_or_ranks,
        help='of the k x k convolutions, or of each as "[0]+[2]*9+[3]*18", 0: dense (default: they are not decomposed)',
    )
    parser.add_argument("--rates", help='pruning rates, as "[0.]+[0.1]*2+[0.4]*5" (default: nothing is pruned)')
    parser.add_argument("--criterion", default="pabs", help=f"one of: {', '.join(CRITERIA)} (default: pabs)")
    parser.add_argument("--decomposition", default="cp", help=f"one of: {', '.join(DECOMPOSITIONS)} (default: cp)")
    parser.add_argument("--num-classes", type=int, help="(default: those of the weights)")
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        help="class folders or a COCO folder: refit what is left to the network's outputs on training images",
    )
    parser.add_argument("--calibration-images", default=1024, type=int, help="how many of them (default: 1024)")
    parser.add_argument(
        "--reconstruct",
        default=0,
        type=int,
        metavar="EPOCHS",
        help="then train to imitate the network's outputs, without labels, on images of --calibrate (default: 0)",
    )
    parser.add_argument(
        "--reconstruct-images", default=1024, type=int, help="how many of them, all in memory (default: 1024)"
    )
    parser.add_argument("--batch-size", default=128, type=int, help="images an update of --reconstruct (default: 128)")
    parser.add_argument("--amp", action="store_true", help="mixed precision in --reconstruct")
    parser.add_argument("--seed", default=0, type=int, help="(default: 0)")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write (.safetensors)")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, compress, write the file and print what it cost and saved."""
    args, _ = parse_with_config(_parser(), argv)
    if args.arch is None:
        raise UsageError("neither --arch nor --config is given; expected one")
    if Path(args.output).suffix != ".safetensors":
        raise UsageError(f"--output {args.output}: expected a name that ends with .safetensors")
    if not Path(args.output).parent.is_dir():
        raise UsageError(f"--output {args.output}: folder {Path(args.output).parent} does not exist")
    check_counts(args, calibration_images=1, reconstruct=0, reconstruct_images=1, batch_size=1)
    if args.reconstruct and not args.calibrate:
        raise UsageError("--reconstruct without --calibrate: expected the folder with the images")
    ARCHITECTURES.check(args.arch)
    count = max(args.calibration_images, args.reconstruct_images if args.reconstruct else 0)
    images = args.calibrate and read_calibration_set(args.calibrate, args.arch, count, seed=args.seed)
    model, arch = _source(args)
    net, spec = nd.compress(
        model,
        arch=arch,
        rank=args.rank,
        rates=args.rates,
        criterion=args.criterion,
        decomposition=args.decomposition,
        num_classes=args.num_classes,
        calibration=images[: args.calibration_images] if args.calibrate else None,
        seed=args.seed,
    )
    if args.reconstruct:
        images = images[: args.reconstruct_images]
        options = {"epochs": args.reconstruct, "batch_size": args.batch_size, "amp": args.amp, "seed": args.seed}
        net, spec = nd.reconstruct(net, spec, _dense(args), images, **options)
    nd.save(net, spec, args.output)
    before = nd.Spec(spec.arch, spec.num_classes, options=spec.options)
    print(_report(nd.count_complexity(before), nd.count_complexity(spec), spec.provenance))
    print(f"written: {args.output} ({Path(args.output).stat().st_size / 1e6:.2f} MB)")


def _source(args: argparse.Namespace) -> tuple[nn.Module | str | None, str | nd.Spec]:
    """Return what to compress, and its architecture or spec."""
    if args.weights is None or not has_spec(args.weights):
        return args.weights, args.arch
    net, spec = nd.load(args.weights, deployed=False)
    if spec.arch != args.arch:
        raise UsageError(f"--weights {args.weights}: is a {spec.arch}; --arch is {args.arch}")
    return net, spec


def _dense(args: argparse.Namespace) -> nn.Module:
    """Return the network that was compressed."""
    model, _ = _source(args)
    if isinstance(model, nn.Module):
        return model
    return initial_network(ARCHITECTURES[args.arch], model, num_classes=args.num_classes, seed=args.seed)[0]


def _report(before: Complexity, after: Complexity, provenance: Any) -> str:
    fits = provenance.get("decompose", {}).get("layers", {})
    skipped = provenance.get("decompose", {}).get("skipped", {})
    outputs = provenance.get("calibrate", {}).get("layers", {})
    rows = []
    for old, new in zip(before.layers, after.layers, strict=True):
        fit = fits.get(new.name)
        note = f"rank {fit['rank']}" if fit else skipped.get(new.name, "")
        error = ["", ""]
        if fit:  # files without a version call the degeneracy "cancellation"
            error = [f"{fit['nmse']:.4f}", f"{fit.get('degeneracy', fit.get('cancellation')):.2f}"]
        if outputs:
            errors = outputs.get(new.name)
            error += [f"{errors[key]:.4f}" if errors else "" for key in ("plain", "fitted")]
        rows.append((new.name, *error, human(old.macs), human(new.macs), human(old.params), human(new.params), note))
    fitted = ("output error", "-> output error") if outputs else ()
    header = ("layer", "NMSE", "degeneracy", *fitted, "MACs", "-> MACs", "params", "-> params", "")
    size = "x".join(map(str, after.image_size))
    totals = [
        _total(f"MACs (conv + linear, {size})", before.macs, after.macs),
        _total("MACs (published convention)", before.macs_published, after.macs_published),
        _total("parameters", before.params, after.params),
    ]
    return f"{table(header, rows)}\n\n{table(('total', 'dense', 'compressed', 'reduction'), totals)}"


def _total(name: str, old: int, new: int) -> tuple[str, str, str, str]:
    return name, f"{old:,}", f"{new:,}", f"{100 * (1 - new / old):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
