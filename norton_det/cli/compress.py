r"""Compress a network: decompose its layers, prune whole filters, write one file.

The ranks and rates are those of --rank and --rates or, with a target, chosen on the images of --calibrate.

Examples:
  norton-det compress --arch resnet50 --weights IMAGENET1K_V2 --rank 1 \
      --rates "[0.]+[0.1]*2+[0.4]*5+[0.75]*12" --output r50.safetensors
  norton-det compress --config resnet56_73m --weights resnet56.pth --output r56.safetensors
  norton-det compress --weights out/checkpoint.pth --scope detector --target-macs 50e9 --calibrate coco \
      --output fast.safetensors
"""

import argparse
import json
import logging
from dataclasses import replace

from torch import nn

import norton_det as nd
from norton_det.checkpoint import has_spec, read_spec
from norton_det.cli.common import Parser
from norton_det.cli.compress_report import Report, already_compressed
from norton_det.cli.config_defaults import add_config
from norton_det.cli.data_options import add_division, division_of
from norton_det.cli.numbers import SEED, whole
from norton_det.cli.options import add_budget, add_compression, budget_of, check_output
from norton_det.cost.budget import Budget
from norton_det.data.calibration_set import read_calibration_set
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn_options import limit_proposals
from norton_det.models.tasks import Detection
from norton_det.models.weights import initial_network
from norton_det.runtime.device import check_device, default_device

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add_config(parser)
    add = parser.add_argument_group("model").add_argument
    add("--arch", choices=[*ARCHITECTURES], metavar="NAME", help="architecture (default: that of the file)")
    add(
        "--weights",
        metavar="FILE|NAME",
        help="state-dict file, training checkpoint, compressed file, or name of torchvision's weights "
        "(default: random, by --seed)",
    )
    add("--num-classes", type=whole(1), metavar="N", help="number of classes (default: those of the weights)")
    add("--seed", default=0, type=SEED, metavar="K", help="of random weights and of random starts")
    solvers = sorted({solver for name in DECOMPOSITIONS for solver in DECOMPOSITIONS[name].solvers})
    add = add_compression(parser).add_argument
    add("--solver", choices=solvers, metavar="NAME", help="of the decomposition: als or tensorly of cp (default: als)")
    add_budget(parser)
    add = parser.add_argument_group("detector").add_argument
    add(
        "--proposals",
        type=whole(1),
        metavar="N",
        help="limit for an image in evaluation, put down in the file; costs are counted at 1000 all the same",
    )
    _add_calibration(parser)
    add = parser.add_argument_group("computation").add_argument
    add("--device", help="cuda or cpu (default: cuda if there is one; with a target: cpu)")
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="FILE", help="file to write (.safetensors)")
    add("--json", action="store_true", help="print the report as JSON")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_calibration(parser: Parser) -> None:
    group = parser.add_argument_group("calibration")
    add = group.add_argument
    add("--calibrate", metavar="DIR", help="class folders or COCO annotations: refit what is left on training images")
    add(
        "--calibration-images",
        type=whole(1),
        metavar="N",
        help="number of them (default: 1024; for a detector 64)",
    )
    add(
        "--reconstruct",
        default=0,
        type=whole(0),
        metavar="EPOCHS",
        help="then train without labels to imitate the network's outputs on images of --calibrate",
    )
    add("--reconstruct-images", default=1024, type=whole(1), metavar="N", help="number of them, all in memory")
    add_division(group)
    add("--batch-size", default=128, type=whole(1), metavar="N", help="images in an update of --reconstruct")
    add("--amp", action="store_true", help="mixed precision in --reconstruct")


def run(args: argparse.Namespace) -> None:
    """Compress, write the file and print costs before and after."""
    if args.quiet:
        logging.getLogger("norton_det").setLevel(logging.WARNING)
    budget = _check(args)
    count = max(args.calibration_images, args.reconstruct_images if args.reconstruct else 0)
    division = division_of(args)
    images = args.calibrate and read_calibration_set(args.calibrate, args.arch, count, seed=args.seed, **division)
    device = args.device or ("cpu" if budget else default_device())
    model, arch = _source(args)
    if args.calibrate:
        step = "choice of ranks and rates, then calibration" if budget else "calibration"
        logger.info("%s on %d images: takes minutes", step, min(len(images), args.calibration_images))
    net, spec = nd.compress(
        model.to(device) if isinstance(model, nn.Module) else model,
        arch=arch,
        rank=args.rank,
        rates=args.rates,
        criterion=args.criterion,
        decomposition=args.decomposition,
        solver=args.solver,
        num_classes=args.num_classes,
        calibration=images[: args.calibration_images] if args.calibrate else None,
        budget=budget or None,
        scope=args.scope,
        round_to=args.round_to,
        seed=args.seed,
        device=device,
    )
    if args.reconstruct:
        images = images[: args.reconstruct_images]
        options = {"epochs": args.reconstruct, "batch_size": args.batch_size, "amp": args.amp, "seed": args.seed}
        net, spec = nd.reconstruct(net, spec, _dense(args), images, **options)
    if args.proposals is not None:
        spec = replace(spec, options={**spec.options, **limit_proposals(net, args.proposals)})
    nd.save(net, spec, args.output)
    if not args.quiet:
        given = arch if isinstance(arch, nd.Spec) else nd.Spec(spec.arch, spec.num_classes, options=spec.options)
        report = Report.of(given, spec, args.output, spec.provenance["allocate"] if budget else None)
        print(json.dumps(report.to_dict()) if args.json else report.text())


def _check(args: argparse.Namespace) -> Budget:
    """Refuse at once what would fail late; find the architecture, and return the limits."""
    if args.arch is None:
        if args.weights is None or not has_spec(args.weights):
            where = "" if args.weights is None else f", and --weights {args.weights} is no file with a spec"
            raise UsageError(f"neither --arch nor --config is given{where}; expected one")
        args.arch = read_spec(args.weights, deployed=True).arch
    _check_dense(args)
    if args.calibration_images is None:
        args.calibration_images = ARCHITECTURES[args.arch].task.calibration_images
    if args.proposals is not None and ARCHITECTURES[args.arch].task.name != Detection.name:
        raise UsageError(f"--proposals with {args.arch}: expected a detector")
    budget = budget_of(args)
    if budget and (args.calibrate is None or args.rank is not None or args.rates is not None):
        raise UsageError("a target takes the place of --rank and --rates; expected --calibrate and neither of these")
    if budget and args.device not in (None, "cpu"):
        raise UsageError(f"--device {args.device} with a target: expected cpu, whose latencies are measured")
    check_device(args.device or "cpu")
    check_output(args.output, ".safetensors")
    if args.reconstruct and not args.calibrate:
        raise UsageError("--reconstruct without --calibrate: expected the folder with the images")
    return budget


def _check_dense(args: argparse.Namespace) -> None:
    """Refuse a config, whose ranks and rates are those of a dense network, for a file that is compressed already."""
    if args.config is None or args.weights is None or not has_spec(args.weights):
        return
    if done := already_compressed(read_spec(args.weights, deployed=True)):
        raise UsageError(
            f"--weights {args.weights}: is compressed already ({done}), and --config {args.config} is for the dense "
            "network; expected dense weights, or --rank and --rates that are relative to what the file has"
        )


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
