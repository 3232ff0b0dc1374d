"""Train Faster, Mask or Keypoint R-CNN with a compressed (or dense) ResNet-50-FPN backbone on a COCO folder.

Flags and defaults are those of torchvision's reference detection script; -dr and -cpr are the original project's. The
default --lr is meant for 16 images in a batch of all processes; --lr auto is 0.02 / 16 for each image that there is.
With --rank or --rates a dense network is compressed before it is trained; a compressed file is fine-tuned as it is.
Under torchrun, -b is the batch of each process. Images that do not fill a last batch are left out of an epoch.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.builders import freeze_backbone, make_detector
from norton_det.checkpoint import load
from norton_det.cli.common import (
    Parser,
    check_counts,
    check_device,
    command,
    json_object,
    parse_with_config,
    rank_or_ranks,
    rate_or_auto,
    tell_changes,
)
from norton_det.compression.compress import compress
from norton_det.data import Augment, Batching, CocoDataset, evaluation_batches, training_batches
from norton_det.data.coco.copy_paste import copy_paste
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.evaluation.coco import CocoEvaluator, format_metrics
from norton_det.models.tasks import kinds_of
from norton_det.models.weights import read_file
from norton_det.pruning import CRITERIA
from norton_det.runtime.distributed import is_main, processes, rank, world_size
from norton_det.runtime.progress import tensorboard_log
from norton_det.spec import Spec
from norton_det.training import Detection, Task, TrainingState, TrainOptions
from norton_det.training.detection import keep_losses_finite
from norton_det.training.distillation import by_features, load_teacher
from norton_det.training.ema import adjusted_decay, moving_average
from norton_det.training.fit import fit
from norton_det.training.implementations import use_implementation
from norton_det.training.optim import make_optimizer, make_schedule

logger = logging.getLogger(__name__)

MODELS = {
    f"{kind}rcnn_{net}_fpn": f"{kind}rcnn_cpresnet50_fpn"
    for kind in ("faster", "mask", "keypoint")
    for net in ("cpresnet50", "resnet50")
}
"""Names of ``--model``: torchvision's dense detectors are the compressible ones with nothing compressed."""
BACKENDS = ("pil", "tensor", "tv_tensor")
_LR_OF_AN_IMAGE = 0.02 / 16
_FREE = {"backend", "config", "data_path", "device", "dist_url", "eval_every", "model", "output_dir", "print_freq"}
_FREE |= {"resume", "start_epoch", "tensorboard", "test_only", "use_v2", "weights", "weights_backbone", "workers"}
_FREE |= {"criterion", "decomposition", "forms", "max_size", "min_size", "model_kwargs", "norm_layer", "rank", "rates"}
_FREE |= {"world_size"}


def get_args_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_torchvisions(parser.add_argument)
    _add_compression(parser.add_argument)
    _add_ours(parser.add_argument)
    return parser


def _add_torchvisions(add: Any) -> None:
    add("--data-path", default="coco", help="COCO folder: train2017/ val2017/ annotations/")
    add("--dataset", default="coco", help="coco (instances) or coco_kp (person keypoints)")
    add("--model", default="maskrcnn_resnet50_fpn", help=f"one of: {', '.join(MODELS)}")
    add("--device", default="cuda", help="cuda or cpu")
    add("-b", "--batch-size", default=2, type=int, help="images a batch in each process")
    add("--epochs", default=26, type=int, metavar="N", help="number of epochs in all")
    add("-j", "--workers", default=4, type=int, metavar="N", help="processes that load data")
    add("--opt", default="sgd", type=str.lower, help="sgd, sgd_nesterov, rmsprop or adamw")
    add("--lr", default=0.02, type=rate_or_auto, help="initial learning rate, or auto")
    add("--momentum", default=0.9, type=float, metavar="M")
    add("--wd", "--weight-decay", default=1e-4, type=float, metavar="W", dest="weight_decay")
    add("--norm-weight-decay", type=float, help="weight decay of normalisation layers (default: --wd)")
    add("--lr-scheduler", default="multisteplr", type=str.lower, help="multisteplr or cosineannealinglr, or others")
    add("--lr-step-size", default=8, type=int, help="epochs of steplr")
    add("--lr-steps", default=[16, 22], nargs="+", type=int, help="epochs of multisteplr")
    add("--lr-gamma", default=0.1, type=float, help="factor by which the rate falls")
    add("--print-freq", default=20, type=int, help="iterations between log lines")
    add("--output-dir", default=".", help="where the files go")
    add("--resume", default="", help="checkpoint to go on from, with the same other flags")
    add("--start_epoch", default=0, type=int, help="number of the first epoch")
    add("--aspect-ratio-group-factor", default=3, type=int, help="batch images of similar shape; -1: do not")
    add("--rpn-score-thresh", type=float, help="least score of a proposal")
    add("--trainable-backbone-layers", type=int, help="0 to 5, from the last stage")
    add("--data-augmentation", default="hflip", help="hflip, lsj, multiscale, ssd or ssdlite")
    add("--sync-bn", action="store_true", help="batch norm over all processes")
    add("--test-only", action="store_true", help="evaluate the network of --resume or --weights, and stop")
    add("--use-deterministic-algorithms", action="store_true")
    add("--world-size", default=1, type=int, help="accepted and not looked at: torchrun says it")
    add("--dist-url", default="env://")
    add("--weights", help="of the whole detector: a file, or the name of torchvision's")
    add("--weights-backbone", help="compressed file, state dict, or the name of torchvision's")
    add("--amp", action="store_true", help="mixed precision")
    add("--use-copypaste", action="store_true", help="paste objects of other images; with --data-augmentation lsj")
    add("--backend", default="PIL", type=str.lower, help="accepted: images are decoded by PIL, then are tensors")
    add("--use-v2", action="store_true", help="accepted: the transforms are v2 always")


def _add_compression(add: Any) -> None:
    add("-dr", "--rank", type=rank_or_ranks, help='of the backbone\'s k x k convolutions, or of each as "[1]*8+[2]*8"')
    add("-cpr", "--rates", "--compress_rate", help='pruning rates, as "[0.]+[0.1]*2" (default: nothing is pruned)')
    add("--criterion", default="pabs", help=f"of pruning, one of: {', '.join(CRITERIA)}")
    add("--decomposition", default="cp", help=f"one of: {', '.join(DECOMPOSITIONS)} (default: cp)")
    add("--form", default="factored", help="how CP blocks are computed: factored, merged, dense, or auto: the fastest")


def _add_ours(add: Any) -> None:
    add("--accumulate", default=1, type=int, metavar="N", help="batches whose mean gradient makes one update")
    add("--clip-grad-norm", type=float, help="bound on the norm of the gradient")
    add("--teacher", help="detector whose feature pyramid is imitated: a file, or the name of torchvision's")
    add("--teacher-weight", default=1.0, type=float, help="of that error in the loss")
    add("--model-ema", action="store_true", help="evaluate and keep a moving average of the network")
    add("--model-ema-steps", default=32, type=int, help="updates from one of the average to the next")
    add("--model-ema-decay", default=0.99998, type=float)
    add("--eval-every", default=1, type=int, metavar="N", help="epochs between evaluations")
    add("--tensorboard", action="store_true", help="write TensorBoard's log to --output-dir as well")
    add("--min-size", type=int, help="length to which an image's shorter side is scaled (default: 800)")
    add("--max-size", type=int, help="bound on the longer side (default: 1333)")
    add("--norm-layer", help="of the backbone: BatchNorm2d or FrozenBatchNorm2d (default: as torchvision)")
    example = '{"anchor_sizes": [[8], [16], [32], [64], [128]], "rpn_post_nms_top_n_train": 200}'
    add("--model-kwargs", default="{}", type=json_object, metavar="JSON", help=f"more of the detector, as {example}")
    add("--seed", default=0, type=int, help="of weights, order and augmentation")


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, train and evaluate."""
    args, _ = parse_with_config(get_args_parser(), argv, recipe=True)
    _check(args)
    torch.use_deterministic_algorithms(args.use_deterministic_algorithms)
    with processes(args.device, args.dist_url) as device:
        torch.manual_seed(args.seed)
        images = args.batch_size * world_size() * args.accumulate
        if args.lr == "auto":
            args.lr = _LR_OF_AN_IMAGE * images
            if is_main():
                logger.info("--lr auto: %g for %d images an update", args.lr, images)
        train, val = _images(args)
        model, spec = _detector(args, train)
        args.forms = _set_implementations(args, model.to(device), device)
        keep_losses_finite(model)
        task = _task(args, model, train, val, device)
        if not args.test_only:
            _train(args, model, spec, task, images * args.model_ema_steps)
            return
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        metrics = task.measure(model)
        if is_main():
            print(format_metrics(metrics))


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail late."""
    if args.model not in MODELS:
        raise UsageError(f"--model {args.model}: unknown; expected one of: {', '.join(MODELS)}")
    if args.model.startswith("keypoint") != (args.dataset == "coco_kp"):
        raise UsageError(f"--model {args.model} with --dataset {args.dataset}: keypoints need both, others neither")
    if args.backend not in BACKENDS:
        raise UsageError(f"--backend {args.backend}: unknown; expected one of: {', '.join(BACKENDS)}")
    if args.use_copypaste and args.data_augmentation != "lsj":
        raise UsageError(f"--use-copypaste with --data-augmentation {args.data_augmentation}: expected lsj")
    if args.sync_bn and not args.device.startswith("cuda"):
        raise UsageError(f"--sync-bn with --device {args.device}: expected cuda, where torch has it")
    check_counts(args, batch_size=1, epochs=1, workers=0, print_freq=1, accumulate=1, model_ema_steps=1, eval_every=1)
    check_device(args.device)


def _images(args: argparse.Namespace) -> tuple[CocoDataset, CocoDataset]:
    """Return the images to train on and those to evaluate on."""
    if is_main() and (args.use_v2 or args.backend != "pil"):
        logger.info("images are decoded by PIL, then transformed as tensors by transforms v2, whatever --backend says")
    masks = args.model.startswith("mask") or args.use_copypaste
    train = CocoDataset(args.data_path, "train", args.dataset, train=True, masks=masks)
    train.transform = Augment(args.data_augmentation, train.keypoint_names)
    return train, CocoDataset(args.data_path, "val", args.dataset)


def _detector(args: argparse.Namespace, train: CocoDataset) -> tuple[nn.Module, Spec]:
    """Return the detector to train, and its spec."""
    if args.resume:
        model, spec = load(args.resume)
        # The checkpoint tells which layers were frozen.
        args.trainable_backbone_layers = read_file(args.resume).get("args", {}).get("trainable_backbone_layers", 5)
    else:
        model, spec = _new_detector(args, train)
    freeze_backbone(model, args.trainable_backbone_layers)
    return (nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.sync_bn else model), spec


def _new_detector(args: argparse.Namespace, train: CocoDataset) -> tuple[nn.Module, Spec]:
    options = dict(args.model_kwargs)
    given = {"min_size": args.min_size, "max_size": args.max_size, "rpn_score_thresh": args.rpn_score_thresh}
    options |= {name: value for name, value in given.items() if value is not None}
    if train.keypoint_names:
        options["num_keypoints"] = len(train.keypoint_names)
    model, spec = make_detector(
        MODELS[args.model],
        weights=args.weights,
        weights_backbone=args.weights_backbone,
        num_classes=train.num_classes,
        trainable_backbone_layers=args.trainable_backbone_layers,
        norm_layer=args.norm_layer,
        **options,
    )
    trained = args.weights or args.weights_backbone
    if not trained or args.trainable_backbone_layers is None:
        args.trainable_backbone_layers = 3 if trained else 5
    if args.rank is None and args.rates is None:
        return model, spec
    if spec.decompositions or spec.widths:
        logger.warning("%s: is compressed already; --rank and --rates are not looked at", trained)
        return model, spec
    names = ("rank", "rates", "criterion", "decomposition", "seed")
    return compress(model, arch=spec, **{name: getattr(args, name) for name in names})


def _set_implementations(args: argparse.Namespace, model: Any, device: torch.device) -> dict[str, Any]:
    """Let the CP blocks be computed as --form says; return what auto chose, which the checkpoint keeps."""
    images = [torch.rand(3, *tuple(model.transform.min_size[-1:]) * 2, device=device)] * args.batch_size
    return use_implementation(model, args.form, lambda: images, resume=args.resume, amp=args.amp)


def _task(
    args: argparse.Namespace, model: nn.Module, train: CocoDataset, val: CocoDataset, device: torch.device
) -> Detection:
    """Return what the detector is trained and evaluated on; what is wrong with it is told here, before the training."""
    batching = Batching(args.batch_size, args.seed, rank(), world_size())
    if not args.test_only:
        batching.steps(len(train))
    kinds = kinds_of(model)
    factor, workers = args.aspect_ratio_group_factor, args.workers
    return Detection(
        partial(training_batches, train, batching, factor=factor, workers=workers),
        partial(evaluation_batches, val, batching, workers=workers),
        device,
        CocoEvaluator(val.coco, kinds, name=val.annotations),
        kinds,
        folder=Path(args.output_dir),
        mix=copy_paste if args.use_copypaste else None,
    )


def _train(args: argparse.Namespace, model: nn.Module, spec: Spec, task: Detection, ema_images: int) -> None:
    teacher = args.teacher and load_teacher(args.teacher, spec)
    goal: Task = by_features(task, teacher, weight=args.teacher_weight) if teacher else task
    optimizer = make_optimizer(
        model,
        args.opt,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        norm_weight_decay=args.norm_weight_decay,
    )
    schedule = make_schedule(
        optimizer,
        args.lr_scheduler,
        epochs=args.epochs,
        steps=args.lr_steps,
        step_size=args.lr_step_size,
        gamma=args.lr_gamma,
    )
    scaler = torch.amp.GradScaler(task.device.type, enabled=args.amp and task.device.type == "cuda")
    ema = None
    if args.model_ema:
        ema = moving_average(model, adjusted_decay(args.model_ema_decay, images=ema_images, epochs=args.epochs))
    state = TrainingState(model, spec, optimizer, schedule, scaler, ema, epoch=args.start_epoch - 1)
    if args.resume:
        content = read_file(args.resume)
        state.restore(content, args.resume)
        tell_changes(args, content["args"], free=_FREE)
    options = TrainOptions(
        accumulate=args.accumulate,
        clip_grad_norm=args.clip_grad_norm,
        amp=args.amp,
        ema_steps=args.model_ema_steps,
        warm_up=True,
        seed=args.seed,
        print_freq=args.print_freq,
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    fit(
        state,
        goal,
        options,
        epochs=args.epochs,
        folder=args.output_dir,
        args=vars(args),
        eval_every=args.eval_every,
        numbered=True,
        on_epoch=tensorboard_log(args.output_dir, state.epoch + 1) if args.tensorboard and is_main() else None,
    )


if __name__ == "__main__":
    sys.exit(main())
