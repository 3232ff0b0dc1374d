"""Train a classifier, compressed or dense, on CIFAR-10 or on class folders such as ImageNet's.

Flags and defaults are those of torchvision's reference classification script, as far as they exist here. The network is
that of --weights: a file of norton-det compress is fine-tuned as it was compressed; a state dict, the name of
torchvision's weights, or nothing (random weights, by --seed) give the dense network of --model. Under torchrun, -b is
the batch of each process. Images that do not fill a last batch are left out of an epoch.

Not available: --backend, --use-v2 (always v2), --ra-sampler, --ra-reps, and quantised or fully sharded training.

Examples:
  norton-det train-cls --config resnet56_73m --weights r56.safetensors --data-path cifar10
  torchrun --nproc_per_node=2 -m norton_det train-cls --data-path imagenet --weights r50.safetensors -b 128
"""

import argparse
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.checkpoint import has_spec, load
from norton_det.cli.common import Parser
from norton_det.cli.config_defaults import add_config
from norton_det.cli.numbers import FACTOR, FRACTION, Number, whole
from norton_det.cli.options import Group, add_workers
from norton_det.cli.training_options import (
    Checkpoint,
    add_computation,
    add_moving_average,
    add_optimiser,
    add_output,
    add_schedule,
    check_training,
    kept_implementations,
)
from norton_det.cli.training_run import open_run, train
from norton_det.cli.training_state import images_per_update, make_state
from norton_det.data.batching import Batching, hold_out
from norton_det.data.image_datasets import DATASETS, ImageSet, read_images
from norton_det.data.image_folder import check_classes, match_classes
from norton_det.data.imagenet import INTERPOLATIONS, POLICIES, Preset
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.models import ARCHITECTURES, classifiers
from norton_det.models.weights import initial_network, named_weights
from norton_det.runtime.distributed import processes, rank, world_size
from norton_det.runtime.logs import RunLog
from norton_det.spec import Spec
from norton_det.storage import is_file
from norton_det.structure.describe import describe
from norton_det.structure.history import TRAINING, with_step
from norton_det.training.classification import Classification
from norton_det.training.distillation import by_logits, load_teacher
from norton_det.training.implementations import use_implementation
from norton_det.training.loop import Task
from norton_det.training.optim import WARM_UPS

logger = logging.getLogger(__name__)

Described = tuple[nn.Module, Spec]
"""A network and its spec."""
_SIDE = whole(1, 10_000)  # pixels


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add_config(parser, recipe=True)
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=classifiers(), metavar="NAME", help="architecture (default: that of --weights or --config)")
    add("--weights", metavar="FILE|NAME", help="compressed file, state-dict file, or torchvision's (default: random)")
    _add_data(parser.add_argument_group("data"))
    add = add_optimiser(parser).add_argument
    add("--lr", default=0.1, type=FACTOR, help="initial learning rate")
    add("--bias-weight-decay", type=FACTOR, metavar="W", help="weight decay of biases (default: --wd)")
    add("--label-smoothing", default=0.0, type=FRACTION, metavar="P", help="of the labels in the loss")
    add("--mixup-alpha", default=0.0, type=Number(0, 1000), metavar="A", help="of mixup; 0: none")
    add("--cutmix-alpha", default=0.0, type=Number(0, 1000), metavar="A", help="of CutMix; 0: none")
    add = add_schedule(parser).add_argument
    add("--lr-schedule-by", default="epoch", choices=("epoch", "iteration"), metavar="NAME", help="when it changes")
    add("--lr-min", default=0.0, type=FACTOR, metavar="LR", help="last rate of cosineannealinglr")
    add("--lr-warmup-epochs", default=0, type=whole(0), metavar="N", help="first epochs, with a lower rate")
    add("--lr-warmup-method", default="constant", choices=WARM_UPS, metavar="NAME", help="how it rises")
    add("--lr-warmup-decay", default=0.01, type=Number(0, 1, above=True), metavar="D", help="factor at the start")
    add = parser.add_argument_group("teacher").add_argument
    add("--teacher", metavar="FILE|NAME", help="network to imitate: compressed file, state dict, or torchvision's")
    add(
        "--teacher-weight",
        default=0.9,
        type=FRACTION,
        metavar="W",
        help="of the teacher in the loss; the rest is for the labels",
    )
    add(
        "--teacher-temperature",
        default=4.0,
        type=Number(0, 1000, above=True),
        metavar="T",
        help="by which the logits of both are divided",
    )
    add_moving_average(parser)
    add_computation(parser).add_argument("--channels-last", action="store_true", help="memory format of the network")
    add_output(parser)
    parser.set_defaults(batch_size=32, epochs=90, print_freq=10)
    parser.set_defaults(lr_scheduler="steplr", lr_step_size=30, lr_steps=[30, 60])


def _add_data(group: Group) -> None:
    add = group.add_argument
    add(
        "--data-path",
        required=True,
        metavar="DIR",
        help="folder with train/ and val/ or test/, or with CIFAR-10 as torchvision has it",
    )
    add("--dataset", choices=DATASETS, metavar="NAME", help="data set (default: cifar10 for networks of 32x32 images)")
    add("--holdout", default=0, type=whole(0), metavar="N", help="validate on N training images, which are left out")
    add("--cache-dataset", action="store_true", help="keep decoded CIFAR class folders in a file beside them")
    add_workers(group)
    add("--auto-augment", choices=POLICIES, metavar="NAME", help="of imagenet (default: none)")
    add("--ra-magnitude", default=9, type=whole(0, 30), metavar="M", help="of --auto-augment ra")
    add("--augmix-severity", default=3, type=whole(1, 10), metavar="S", help="of --auto-augment augmix")
    add("--random-erase", default=0.0, type=FRACTION, metavar="P", help="of imagenet: probability")
    add("--interpolation", default="bilinear", choices=INTERPOLATIONS, metavar="NAME", help="of imagenet")
    add("--val-resize-size", default=256, type=_SIDE, metavar="S", help="of imagenet: length of the shorter side")
    add("--val-crop-size", default=224, type=_SIDE, metavar="S", help="of imagenet: side of the crop for evaluation")
    add("--train-crop-size", default=224, type=_SIDE, metavar="S", help="of imagenet: side of the crop for training")


def run(args: argparse.Namespace) -> None:
    """Train and evaluate."""
    check_training(args)
    torch.use_deterministic_algorithms(args.use_deterministic_algorithms)
    torch.backends.cudnn.benchmark = not args.use_deterministic_algorithms  # all images have one size
    with processes(args.device, args.dist_url) as device:
        checkpoint = Checkpoint.of(args)
        described = _described(args, checkpoint)
        arch = _architecture(args, described)
        with open_run(args, arch) as log:
            _run(args, arch, described, checkpoint, device, log)


def _run(
    args: argparse.Namespace,
    arch: str,
    described: Described | None,
    checkpoint: Checkpoint | None,
    device: torch.device,
    log: RunLog,
) -> None:
    train_images, val_images = _images(args, arch)
    model, spec = _network(args, arch, described, train_images.classes)
    model.to(device).to(memory_format=_memory_format(args))
    args.implementations = _set_implementations(args, model, arch, device, checkpoint)
    train_images, val_images = train_images.to(device), val_images.to(device)
    batching = Batching(args.batch_size, args.seed, rank(), world_size())
    if args.test_only:
        print(evaluate(model, val_images.evaluation(batching), device, amp=args.amp))
        return
    if not args.holdout:
        logger.info(
            "No --holdout: best.safetensors is selected on the test set. Report the accuracy of last.safetensors."
        )
    steps = batching.steps(len(train_images))
    updates = steps if args.lr_schedule_by == "iteration" else 1
    state = make_state(args, model, spec, device, images=images_per_update(args), schedule_updates=updates)
    task = _task(args, spec, train_images, val_images, batching, device)
    data = {"train": _facts(args, train_images), "val": _facts(args, val_images)}
    options = {"schedule_by": args.lr_schedule_by, "ema_warmup_epochs": args.lr_warmup_epochs}
    train(args, state, task, checkpoint, log, data=data, options=options)


def _facts(args: argparse.Namespace, images: ImageSet) -> dict[str, Any]:
    """Return what ``args.yaml`` says about the images."""
    return {"images": len(images), "objects": None, "annotations": None, "folder": str(Path(args.data_path).absolute())}


def _described(args: argparse.Namespace, checkpoint: Checkpoint | None) -> Described | None:
    """Return the network of --resume, or of --weights if that is a file with a spec."""
    if checkpoint is not None:
        return checkpoint.network()
    return load(args.weights, deployed=False) if args.weights and has_spec(args.weights) else None


def _architecture(args: argparse.Namespace, described: Described | None) -> str:
    """Return the architecture to train: that of the file if it says so, or else --model's."""
    arch = args.model if described is None else described[1].arch
    if arch is None and args.weights and not (is_file(args.weights) or _is_published(args.weights)):
        raise DataError(f"{args.weights}: no such file; expected weights, or the name of torchvision's")
    if arch is None:
        raise UsageError("--model is missing; expected an architecture, or --weights with a compressed file")
    source = args.resume or args.weights
    if args.model not in (None, arch):
        raise UsageError(f"{source}: is a {arch}; --model is {args.model}")
    if arch not in classifiers():
        raise UsageError(f"{source}: is a {arch}; expected one of: {', '.join(classifiers())}")
    return str(arch)


def _is_published(weights: str) -> bool:
    return any(named_weights(ARCHITECTURES[name].weights, weights) for name in classifiers())


def _dataset(args: argparse.Namespace, arch: str) -> str:
    return args.dataset or ARCHITECTURES[arch].dataset


def _images(args: argparse.Namespace, arch: str) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and those to validate on."""
    dataset = _dataset(args, arch)
    preset = Preset(**{field.name: getattr(args, field.name) for field in fields(Preset)})
    if dataset == "cifar10" and (args.auto_augment or args.random_erase):
        raise UsageError("--auto-augment and --random-erase: only with --dataset imagenet; cifar10 has its own")
    options: dict[str, Any] = {"preset": preset, "workers": args.workers, "cache": args.cache_dataset}
    images = read_images(dataset, args.data_path, "train", **options)
    if args.holdout:
        kept, held_out = hold_out(len(images), args.holdout)
        return images.subset(kept), images.subset(held_out)
    val = read_images(dataset, args.data_path, "val", **options)
    check_classes(images.classes, val.classes, args.data_path)
    return images, val


def _network(args: argparse.Namespace, arch: str, described: Described | None, classes: list[str]) -> Described:
    """Return the network to train and its spec: that of the file, or a dense one."""
    if described is not None:
        net, spec = described
        spec = match_classes(spec, classes, args.resume or args.weights)
    else:
        net, origin = initial_network(ARCHITECTURES[arch], args.weights, num_classes=len(classes), seed=args.seed)
        spec = replace(describe(net, arch), provenance={"weights": origin}, classes=tuple(classes))
    spec = with_step(spec, TRAINING, {"command": "train-cls", "epochs": args.epochs})
    return (nn.SyncBatchNorm.convert_sync_batchnorm(net) if args.sync_bn else net), spec


def _memory_format(args: argparse.Namespace) -> torch.memory_format:
    return torch.channels_last if args.channels_last else torch.preserve_format


def _set_implementations(
    args: argparse.Namespace, model: nn.Module, arch: str, device: torch.device, checkpoint: Checkpoint | None
) -> dict[str, str]:
    """Set --implementation; return what auto chose, which the checkpoint keeps."""
    size = args.train_crop_size if _dataset(args, arch) == "imagenet" else ARCHITECTURES[arch].image_size
    return use_implementation(
        model,
        args.implementation,
        lambda: torch.randn(args.batch_size, 3, size, size, device=device),
        kept=kept_implementations(checkpoint),
        memory_format=torch.channels_last if args.channels_last else torch.contiguous_format,
        amp=args.amp,
    )


def _task(
    args: argparse.Namespace,
    spec: Spec,
    train_images: ImageSet,
    val_images: ImageSet,
    batching: Batching,
    device: torch.device,
) -> Task:
    """Return what the network is trained for: the labels, and with --teacher another network's logits."""
    task = Classification(
        lambda epoch, start: train_images.training(batching, epoch, start),
        lambda: val_images.evaluation(batching),
        device,
        spec.num_classes,
        label_smoothing=args.label_smoothing,
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
        amp=args.amp,
    )
    if not args.teacher:
        return task
    teacher = load_teacher(args.teacher, spec).to(memory_format=_memory_format(args))
    return by_logits(task, teacher, weight=args.teacher_weight, temperature=args.teacher_temperature)
