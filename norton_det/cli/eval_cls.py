"""Evaluate a classifier on CIFAR-10 or on class folders: top-1 and top-5 accuracy in percent.

Example:
  norton-det eval-cls --checkpoint out/best.safetensors --data-path cifar10 --json
"""

import argparse
import json
from dataclasses import fields

import torch
from torch import nn

import norton_det as nd
from norton_det.checkpoint import has_spec
from norton_det.cli.common import Parser
from norton_det.cli.numbers import SIDE, whole
from norton_det.cli.options import add_device, add_implementation, add_workers
from norton_det.data.batching import Batching, hold_out
from norton_det.data.image_datasets import DATASETS, ImageSet, read_images
from norton_det.data.image_folder import match_classes
from norton_det.data.imagenet import INTERPOLATIONS, Preset
from norton_det.decompositions import set_implementation
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.models import ARCHITECTURES, classifiers
from norton_det.models.weights import initial_network
from norton_det.runtime.device import check_device
from norton_det.storage import is_file
from norton_det.structure.describe import describe


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", required=True, metavar="FILE", help="compressed file, training checkpoint or state dict")
    add("--model", choices=classifiers(), metavar="NAME", help="architecture, needed for a state dict")
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", required=True, metavar="DIR", help="folder with the splits, or CIFAR-10 as torchvision has it")
    add("--dataset", choices=DATASETS, metavar="NAME", help="data set (default: cifar10 for networks of 32x32 images)")
    add("--split", default="val", help="train, test, or val (which is test/ where there is no val/)")
    add(
        "--holdout",
        default=0,
        type=whole(0),
        metavar="N",
        help="the N training images that train-cls --holdout leaves out",
    )
    add("--interpolation", default="bilinear", choices=INTERPOLATIONS, metavar="NAME", help="of imagenet")
    add("--val-resize-size", default=256, type=SIDE, metavar="S", help="of imagenet: length of the shorter side")
    add("--val-crop-size", default=224, type=SIDE, metavar="S", help="of imagenet: side of the crop")
    add("--cache-dataset", action="store_true", help="keep decoded CIFAR class folders in a file beside them")
    add("-b", "--batch-size", default=256, type=whole(1), metavar="N", help="images in a batch")
    add_workers(group)
    group = parser.add_argument_group("computation")
    add_device(group)
    add_implementation(group)
    group.add_argument("--amp", action="store_true", help="mixed precision")
    add = parser.add_argument_group("output").add_argument
    add("--print-freq", default=100, type=whole(1), metavar="N", help="batches between log lines")
    add("--json", action="store_true", help="print JSON rather than a line")


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    check_device(args.device)
    net, spec = _network(args.checkpoint, args.model)
    set_implementation(net, args.implementation)
    images = _images(args, spec)
    device = torch.device(args.device)
    batches = images.to(device).evaluation(Batching(args.batch_size))
    result = evaluate(net.to(device), batches, device, amp=args.amp, print_freq=args.print_freq)
    if args.json:
        print(json.dumps({"top1": result.top1, "top5": result.top5, "images": result.images}))
    else:
        print(f"Acc@1 {result.top1:.2f} Acc@5 {result.top5:.2f} of {result.images} images")


def _images(args: argparse.Namespace, spec: nd.Spec) -> ImageSet:
    preset = {field.name: getattr(args, field.name) for field in fields(Preset) if field.name in args}
    images = read_images(
        args.dataset or ARCHITECTURES[spec.arch].dataset,
        args.data_path,
        "train" if args.holdout else args.split,
        preset=Preset(**preset),
        workers=args.workers,
        cache=args.cache_dataset,
    )
    match_classes(spec, images.classes, args.checkpoint)
    return images.subset(hold_out(len(images), args.holdout)[1]) if args.holdout else images


def _network(path: str, model: str | None) -> tuple[nn.Module, nd.Spec]:
    """Return the network in a file, and its spec."""
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected a compressed file, training checkpoint or state dict")
    if has_spec(path):
        net, spec = nd.load(path)
        if model not in (None, spec.arch):
            raise UsageError(f"--checkpoint {path}: is a {spec.arch}; --model is {model}")
    elif model is None:
        raise UsageError(f"--checkpoint {path}: holds no spec; expected --model with its architecture")
    else:
        net, _ = initial_network(ARCHITECTURES[model], path)
        spec = describe(net, model)
    if spec.arch not in classifiers():
        raise UsageError(f"--checkpoint {path}: is a {spec.arch}; expected one of: {', '.join(classifiers())}")
    return net, spec
