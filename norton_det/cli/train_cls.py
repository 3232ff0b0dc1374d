"""Train a classifier, dense or compressed, on CIFAR-10 or on class folders such as ImageNet's.

Flags and defaults are those of torchvision's reference classification script, as far as they stand here. What is
trained is the network of --weights: a file of compress.py is fine-tuned as it was compressed; a state dict, the name of
torchvision's weights, or nothing (a seeded random start) give the dense network of --model. Under torchrun, -b is the
batch of each process. Images that do not fill a last batch are left out of an epoch.

Not taken over: --backend, --use-v2 (always v2), --ra-sampler, --ra-reps, and quantised or fully sharded training.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.checkpoint import has_spec, load, read_spec
from norton_det.cli.common import Parser, check_counts, check_device, command, parse_with_config, tell_changes
from norton_det.data.batching import Batching, hold_out
from norton_det.data.image_datasets import ImageSet, read_images
from norton_det.data.image_folder import check_classes, check_num_classes
from norton_det.data.imagenet import Preset
from norton_det.errors import UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.models import ARCHITECTURES, CLASSIFIERS
from norton_det.models.weights import initial_network, read_file
from norton_det.runtime.distributed import is_main, processes, rank, world_size
from norton_det.runtime.progress import tensorboard_log
from norton_det.spec import Spec
from norton_det.structure.describe import describe
from norton_det.training.classification import Classification
from norton_det.training.distillation import by_logits, load_teacher
from norton_det.training.ema import adjusted_decay, moving_average
from norton_det.training.fit import fit
from norton_det.training.implementations import use_implementation
from norton_det.training.loop import Task, TrainOptions
from norton_det.training.optim import make_optimizer, make_schedule
from norton_det.training.state import TrainingState

logger = logging.getLogger(__name__)
_FREE = {"cache_dataset", "config", "data_path", "device", "dist_url", "forms", "model", "output_dir", "print_freq"}
_FREE |= {"resume", "start_epoch", "tensorboard", "test_only", "weights", "workers", "world_size"}


def get_args_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_data(parser.add_argument)
    _add_training(parser.add_argument)
    return parser


def _add_data(add: Any) -> None:
    add(
        "--data-path",
        required=True,
        help="folder with train/ and val/ or test/, or with CIFAR-10 as torchvision has it",
    )
    add("--dataset", help="cifar10 or imagenet (default: cifar10 for networks of 32x32 images)")
    add("--holdout", default=0, type=int, metavar="N", help="validate on N training images, which are left out")
    add("--cache-dataset", action="store_true", help="keep decoded CIFAR class folders in a file beside them")
    add("-j", "--workers", default=4, type=int, metavar="N", help="processes that load data")
    add("--auto-augment", help="of imagenet: ra, ta_wide, augmix, imagenet, cifar10 or svhn")
    add("--ra-magnitude", default=9, type=int)
    add("--augmix-severity", default=3, type=int)
    add("--random-erase", default=0.0, type=float, help="of imagenet: probability")
    add("--interpolation", default="bilinear")
    add("--val-resize-size", default=256, type=int)
    add("--val-crop-size", default=224, type=int)
    add("--train-crop-size", default=224, type=int)


def _add_training(add: Any) -> None:
    add("--model", help=f"architecture: {', '.join(CLASSIFIERS)} (default: that of --weights or --config)")
    add("--weights", help="compressed file, state-dict file, or torchvision's name (default: random)")
    add("--device", default="cuda", help="cuda or cpu")
    add("-b", "--batch-size", default=32, type=int, help="images a batch in each process")
    add("--epochs", default=90, type=int, metavar="N", help="number of epochs in all")
    add("--opt", default="sgd", help="sgd, sgd_nesterov, rmsprop or adamw")
    add("--lr", default=0.1, type=float, help="initial learning rate")
    add("--momentum", default=0.9, type=float, metavar="M")
    add("--wd", "--weight-decay", default=1e-4, type=float, metavar="W", dest="weight_decay")
    add("--norm-weight-decay", type=float, help="weight decay of normalisation layers (default: --wd)")
    add("--bias-weight-decay", type=float, help="weight decay of biases (default: --wd)")
    add("--label-smoothing", default=0.0, type=float)
    add("--mixup-alpha", default=0.0, type=float)
    add("--cutmix-alpha", default=0.0, type=float)
    add("--lr-scheduler", default="steplr", help="steplr, multisteplr, cosineannealinglr or exponentiallr")
    add("--lr-schedule-by", default="epoch", help="epoch or iteration: when the rate changes")
    add("--lr-warmup-epochs", default=0, type=int)
    add("--lr-warmup-method", default="constant", help="constant or linear")
    add("--lr-warmup-decay", default=0.01, type=float)
    add("--lr-step-size", default=30, type=int, help="epochs of steplr")
    add("--lr-steps", default=[30, 60], nargs="+", type=int, help="epochs of multisteplr")
    add("--lr-gamma", default=0.1, type=float)
    add("--lr-min", default=0.0, type=float)
    add("--clip-grad-norm", type=float)
    add("--teacher", help="network to imitate: compressed file, state-dict file, or torchvision's name")
    add("--teacher-weight", default=0.9, type=float, help="of the teacher in the loss; the labels have the rest")
    add("--teacher-temperature", default=4.0, type=float, help="by which the logits of both are divided")
    add("--model-ema", action="store_true", help="evaluate and write a moving average of the network")
    add("--model-ema-steps", default=32, type=int)
    add("--model-ema-decay", default=0.99998, type=float)
    add("--amp", action="store_true", help="mixed precision")
    add("--form", default="factored", help="how CP blocks are computed: factored, merged, dense, or auto: the fastest")
    add("--channels-last", action="store_true", help="memory format of the network")
    add("--print-freq", default=10, type=int, help="iterations between log lines")
    add("--output-dir", default=".", help="where the files go")
    add("--resume", default="", help="checkpoint to go on from, with the same other flags")
    add("--start-epoch", default=0, type=int, help="number of the first epoch")
    add("--test-only", action="store_true", help="evaluate and stop")
    add("--use-deterministic-algorithms", action="store_true")
    add("--sync-bn", action="store_true", help="batch norm over all processes")
    add("--dist-url", default="env://")
    add("--world-size", default=1, type=int, help="accepted and not looked at: torchrun says it")
    add("--tensorboard", action="store_true", help="write TensorBoard's log to --output-dir as well")
    add("--seed", default=0, type=int, help="of weights, order and augmentation")


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, train and evaluate."""
    args, _ = parse_with_config(get_args_parser(), argv, recipe=True)
    _check(args)
    torch.use_deterministic_algorithms(args.use_deterministic_algorithms)
    torch.backends.cudnn.benchmark = not args.use_deterministic_algorithms  # images are all of one size
    with processes(args.device, args.dist_url) as device:
        arch = _architecture(args)
        train, val = _images(args, arch)
        model, spec = _network(args, arch, train.classes)
        model.to(device).to(memory_format=_memory_format(args))
        args.forms = _set_implementations(args, model, arch, device)
        train, val = train.to(device), val.to(device)
        batching = Batching(args.batch_size, args.seed, rank(), world_size())
        if args.test_only:
            result = evaluate(model, val.evaluation(batching), device, amp=args.amp)
            print(result)
        else:
            _train(args, model, spec, train, val, batching, device)


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail late."""
    check_counts(args, batch_size=1, epochs=1, workers=0, print_freq=1, model_ema_steps=1, holdout=0)
    if args.lr_schedule_by not in ("epoch", "iteration"):
        raise UsageError(f"unknown lr_schedule_by {args.lr_schedule_by!r}; expected one of: epoch, iteration")
    check_device(args.device)
    if args.sync_bn and not args.device.startswith("cuda"):
        raise UsageError(f"--sync-bn with --device {args.device}: expected cuda, where torch has it")


def _memory_format(args: argparse.Namespace) -> torch.memory_format:
    return torch.channels_last if args.channels_last else torch.preserve_format


def _architecture(args: argparse.Namespace) -> str:
    """Return the architecture that is trained: that of the file where it says, or else --model's."""
    source = args.resume or args.weights
    arch = read_spec(source).arch if args.resume or (source and has_spec(source)) else args.model
    if arch is None:
        raise UsageError("--model is missing; expected an architecture, or --weights with a compressed file")
    if args.model not in (None, arch):
        raise UsageError(f"{source}: is a {arch}; --model is {args.model}")
    if arch not in CLASSIFIERS:
        raise UsageError(f"unknown classifier {arch!r}; expected one of: {', '.join(CLASSIFIERS)}")
    return arch


def _set_implementations(args: argparse.Namespace, model: nn.Module, arch: str, device: torch.device) -> dict[str, str]:
    """Let the CP blocks be computed as --form says; return what auto chose, which the checkpoint keeps."""
    size = args.train_crop_size if _dataset(args, arch) == "imagenet" else ARCHITECTURES[arch].image_size
    return use_implementation(
        model,
        args.form,
        lambda: torch.randn(args.batch_size, 3, size, size, device=device),
        resume=args.resume,
        memory_format=torch.channels_last if args.channels_last else torch.contiguous_format,
        amp=args.amp,
    )


def _dataset(args: argparse.Namespace, arch: str) -> str:
    return args.dataset or ARCHITECTURES[arch].dataset


def _images(args: argparse.Namespace, arch: str) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and those to validate on."""
    dataset = _dataset(args, arch)
    preset = Preset(**{field.name: getattr(args, field.name) for field in fields(Preset)})
    if dataset == "cifar10" and (args.auto_augment or args.random_erase):
        raise UsageError("--auto-augment and --random-erase: only with --dataset imagenet; cifar10 has its own")
    options: dict[str, Any] = {"preset": preset, "workers": args.workers, "cache": args.cache_dataset}
    train = read_images(dataset, args.data_path, "train", **options)
    if args.holdout:
        kept, held_out = hold_out(len(train), args.holdout)
        return train.subset(kept), train.subset(held_out)
    val = read_images(dataset, args.data_path, "val", **options)
    check_classes(train.classes, val.classes, args.data_path)
    return train, val


def _network(args: argparse.Namespace, arch: str, classes: list[str]) -> tuple[nn.Module, Spec]:
    source = args.resume or args.weights
    if source and has_spec(source):
        net, spec = load(source)
        check_num_classes(spec.num_classes, classes, source)
    else:
        net, origin = initial_network(ARCHITECTURES[arch], args.weights, num_classes=len(classes), seed=args.seed)
        spec = replace(describe(net, arch), provenance={"weights": origin})
    return (nn.SyncBatchNorm.convert_sync_batchnorm(net) if args.sync_bn else net), spec


def _train(
    args: argparse.Namespace,
    model: nn.Module,
    spec: Spec,
    train: ImageSet,
    val: ImageSet,
    batching: Batching,
    device: torch.device,
) -> None:
    steps = batching.steps(len(train))
    state = _state(args, model, spec, steps, device)
    if args.resume:
        content = read_file(args.resume)
        state.restore(content, args.resume)
        tell_changes(args, content["args"], free=_FREE)
    if not args.holdout:
        logger.info("best.safetensors is chosen on the images that are reported on: report last.safetensors")
    task: Task = Classification(
        lambda epoch, start: train.training(batching, epoch, start),
        lambda: val.evaluation(batching),
        device,
        spec.num_classes,
        label_smoothing=args.label_smoothing,
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
        amp=args.amp,
    )
    if args.teacher:
        teacher = load_teacher(args.teacher, spec).to(memory_format=_memory_format(args))
        task = by_logits(task, teacher, weight=args.teacher_weight, temperature=args.teacher_temperature)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    fit(
        state,
        task,
        _options(args),
        epochs=args.epochs,
        folder=args.output_dir,
        args=vars(args),
        on_epoch=tensorboard_log(args.output_dir, state.epoch + 1) if args.tensorboard and is_main() else None,
    )


def _state(args: argparse.Namespace, model: nn.Module, spec: Spec, steps: int, device: torch.device) -> TrainingState:
    """Return the state before the first epoch, of ``steps`` batches."""
    optimizer = make_optimizer(
        model,
        args.opt,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        norm_weight_decay=args.norm_weight_decay,
        bias_weight_decay=args.bias_weight_decay,
    )
    schedule = make_schedule(
        optimizer,
        args.lr_scheduler,
        epochs=args.epochs,
        gamma=args.lr_gamma,
        steps=args.lr_steps,
        step_size=args.lr_step_size,
        lr_min=args.lr_min,
        warmup_epochs=args.lr_warmup_epochs,
        warmup_method=args.lr_warmup_method,
        warmup_decay=args.lr_warmup_decay,
        per_epoch=steps if args.lr_schedule_by == "iteration" else 1,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")
    ema = None
    if args.model_ema:
        images = world_size() * args.batch_size * args.model_ema_steps
        ema = moving_average(model, adjusted_decay(args.model_ema_decay, images=images, epochs=args.epochs))
    return TrainingState(model, spec, optimizer, schedule, scaler, ema, epoch=args.start_epoch - 1)


def _options(args: argparse.Namespace) -> TrainOptions:
    return TrainOptions(
        clip_grad_norm=args.clip_grad_norm,
        amp=args.amp,
        ema_steps=args.model_ema_steps,
        ema_warmup_epochs=args.lr_warmup_epochs,
        schedule_by=args.lr_schedule_by,
        seed=args.seed,
        print_freq=args.print_freq,
    )


if __name__ == "__main__":
    sys.exit(main())
