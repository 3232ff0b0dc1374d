"""Evaluate a classifier on CIFAR-10 or on class folders such as ImageNet's: top-1 and top-5 accuracy in percent."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import nn

import norton_det as nd
from norton_det.checkpoint import has_spec
from norton_det.cli.common import Parser, check_counts, check_device, command
from norton_det.data.batching import Batching, hold_out
from norton_det.data.image_datasets import read_images
from norton_det.data.image_folder import check_num_classes
from norton_det.data.imagenet import Preset
from norton_det.decompositions import set_implementation
from norton_det.errors import UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.models import ARCHITECTURES, CLASSIFIERS
from norton_det.models.weights import initial_network
from norton_det.structure.describe import describe


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="compressed file, training checkpoint or state dict")
    add("--model", help=f"architecture, needed for a state dict: {', '.join(CLASSIFIERS)}")
    add("--data-path", required=True, metavar="DIR", help="folder with the splits, or CIFAR-10 as torchvision has it")
    add("--dataset", help="cifar10 or imagenet (default: cifar10 for networks of 32x32 images)")
    add("--split", default="val", help="train, test, or val (which is test/ where there is no val/)")
    add(
        "--holdout",
        default=0,
        type=int,
        metavar="N",
        help="the N training images that train_cls.py --holdout leaves out",
    )
    add("--interpolation", default="bilinear")
    add("--val-resize-size", default=256, type=int)
    add("--val-crop-size", default=224, type=int)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("-b", "--batch-size", default=256, type=int, help="images a batch")
    add("-j", "--workers", default=4, type=int, help="processes that load data")
    add("--cache-dataset", action="store_true", help="keep decoded CIFAR class folders in a file beside them")
    add("--form", default="factored", help="how CP blocks are computed: factored, merged or dense (same function)")
    add("--amp", action="store_true", help="mixed precision")
    add("--print-freq", default=100, type=int, help="batches between log lines")
    add("--json", action="store_true", help="print JSON rather than a line")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, evaluate and print."""
    args = _parser().parse_args(argv)
    check_counts(args, batch_size=1, workers=0, print_freq=1, holdout=0)
    check_device(args.device)
    net, spec = _network(args.checkpoint, args.model)
    set_implementation(net, args.form)
    split = "train" if args.holdout else args.split
    known = {field.name for field in fields(Preset)} & vars(args).keys()
    images = read_images(
        args.dataset or ARCHITECTURES[spec.arch].dataset,
        args.data_path,
        split,
        preset=Preset(**{name: getattr(args, name) for name in known}),
        workers=args.workers,
        cache=args.cache_dataset,
    )
    check_num_classes(spec.num_classes, images.classes, args.checkpoint)
    if args.holdout:
        images = images.subset(hold_out(len(images), args.holdout)[1])
    device = torch.device(args.device)
    batches = images.to(device).evaluation(Batching(args.batch_size))
    result = evaluate(net.to(device), batches, device, amp=args.amp, print_freq=args.print_freq)
    if args.json:
        print(json.dumps({"top1": result.top1, "top5": result.top5, "images": result.images}))
    else:
        print(f"Acc@1 {result.top1:.2f} Acc@5 {result.top5:.2f} of {result.images} images")


def _network(path: str, model: str | None) -> tuple[nn.Module, nd.Spec]:
    """Return the network in a file, and what it is."""
    if has_spec(path):
        net, spec = nd.load(path)
        if model not in (None, spec.arch):
            raise UsageError(f"--checkpoint {path}: is a {spec.arch}; --model is {model}")
    elif model is None:
        raise UsageError(f"--checkpoint {path}: holds no spec; expected --model with its architecture")
    else:
        net, _ = initial_network(ARCHITECTURES[model], path)
        spec = describe(net, model)
    if spec.arch not in CLASSIFIERS:
        raise UsageError(f"--checkpoint {path}: is a {spec.arch}; expected one of: {', '.join(CLASSIFIERS)}")
    return net, spec


if __name__ == "__main__":
    sys.exit(main())
