r"""Train Faster, Mask or Keypoint R-CNN, compressed or dense, on annotations in COCO's format.

Flags and defaults are those of torchvision's reference detection script; -dr and -cpr are the original project's. The
default --lr is for 16 images in a batch of all processes; --lr auto is 0.02 / 16 for each image of an update. With
--rank or --rates a dense network is compressed before it is trained; a compressed file is fine-tuned as it is. Under
torchrun, -b is the batch of each process. Images that do not fill a last batch are left out of an epoch.

Examples:
  norton-det train-det --data-path coco --model fasterrcnn_cpresnet50_fpn --weights-backbone r50.safetensors
  torchrun --nproc_per_node=8 -m norton_det train-det --config fasterrcnn_93g --data-path coco \
      --weights-backbone ResNet50_Weights.IMAGENET1K_V1 --lr auto --output-dir out
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.cli.common import Parser
from norton_det.cli.config_defaults import add_config
from norton_det.cli.data_options import (
    FILES,
    FOLDER,
    add_dataset,
    add_division,
    add_files,
    add_keypoint_sigmas,
    check_division,
    check_files,
    files_of,
)
from norton_det.cli.detector_to_train import MODELS, OF_A_NEW_DETECTOR, detector_to_train, match
from norton_det.cli.numbers import FACTOR, FRACTION, SIDE, whole
from norton_det.cli.options import (
    add_compression,
    add_max_detections,
    add_workers,
    json_object,
    pair_of_names,
    rate_or_auto,
)
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
from norton_det.cli.training_run import coco_facts, open_run, train
from norton_det.cli.training_state import images_per_update, make_state
from norton_det.config import COMPRESSION
from norton_det.data import Augment, Batching, CocoDataset, evaluation_batches, training_batches
from norton_det.data.coco.copy_paste import copy_paste
from norton_det.data.coco.shapes import check_scalable
from norton_det.data.coco.transforms import PRESETS
from norton_det.errors import UsageError
from norton_det.evaluation.coco import CocoEvaluator, format_metrics
from norton_det.evaluation.examples import drawn_examples
from norton_det.evaluation.keypoint_sigmas import set_sigmas
from norton_det.evaluation.limits import warn_of_detector_limit
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import kinds_of
from norton_det.runtime.distributed import is_main, processes, rank, world_size
from norton_det.storage import make_folder
from norton_det.training import Detection, Task
from norton_det.training.detection import keep_losses_finite
from norton_det.training.distillation import DISTANCES, by_features, feature_channels, load_teacher
from norton_det.training.implementations import use_implementation

logger = logging.getLogger(__name__)

BACKENDS = ("pil", "tensor", "tv_tensor")
_LR_OF_AN_IMAGE = 0.02 / 16
_FAR_ABOVE = 3  # times the usual learning rate
_FREE = {*OF_A_NEW_DETECTOR, *COMPRESSION, *FILES, "keypoint_sigmas", "backend", "eval_every", "use_v2"}


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add_config(parser, recipe=True)
    _add_model(parser)
    add_compression(parser)
    _add_data(parser)
    add = add_optimiser(parser).add_argument
    add("--accumulate", default=1, type=whole(1), metavar="N", help="batches whose mean gradient makes one update")
    add("--lr", default=0.02, type=rate_or_auto, help="initial learning rate, or auto")
    add_schedule(parser)
    add = parser.add_argument_group("teacher").add_argument
    add("--teacher", metavar="FILE|NAME", help="detector whose feature pyramid is imitated: a file, or torchvision's")
    add("--teacher-weight", default=1.0, type=FACTOR, metavar="W", help="of that error in the loss")
    add("--teacher-distance", default="mse", choices=list(DISTANCES), help="pkd: by the correlation of each channel")
    add_moving_average(parser)
    add_computation(parser)
    group = add_output(parser)
    group.add_argument("--eval-every", default=1, type=whole(1), metavar="N", help="epochs between evaluations")
    add_max_detections(group)
    parser.set_defaults(batch_size=2, epochs=26, print_freq=20)
    parser.set_defaults(lr_scheduler="multisteplr", lr_step_size=8, lr_steps=[16, 22])


def _add_model(parser: Parser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="maskrcnn_resnet50_fpn", choices=[*MODELS], metavar="NAME", help="detector")
    add("--weights", metavar="FILE|NAME", help="of the whole detector: a file, or the name of torchvision's")
    add("--weights-backbone", metavar="FILE|NAME", help="compressed file, state dict, or the name of torchvision's")
    text = "0 to 5, from the last stage (default: 3 of weights that were trained, otherwise 5)"
    add("--trainable-backbone-layers", type=whole(0, 5), metavar="N", help=text)
    text = "of the backbone: BatchNorm2d or FrozenBatchNorm2d (default: frozen, unless weights are new or pruned since)"
    add("--norm-layer", metavar="NAME", help=text)
    add("--rpn-score-thresh", type=FRACTION, metavar="P", help="minimum score of a proposal (default: 0)")
    add(
        "--min-size",
        type=SIDE,
        metavar="S",
        help="length to which an image's shorter side is scaled (default: 800)",
    )
    add("--max-size", type=SIDE, metavar="S", help="limit of the longer side (default: 1333)")
    example = '{"anchor_sizes": [[8], [16], [32], [64], [128]], "rpn_post_nms_top_n_train": 200}'
    add("--model-kwargs", default="{}", type=json_object, metavar="JSON", help=f"more of the detector, as {example}")


def _add_data(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", default="coco", metavar="DIR", help=FOLDER)
    add_dataset(group)
    add_files(group)
    add_division(group)
    add_keypoint_sigmas(group)
    add_workers(group)
    add(
        "--aspect-ratio-group-factor",
        default=3,
        type=whole(-1, 100),
        metavar="K",
        help="batch images of similar shape; -1: no",
    )
    add("--data-augmentation", default="hflip", choices=PRESETS, metavar="NAME", help="preset of torchvision's script")
    add(
        "--keypoint-pairs", nargs="+", type=pair_of_names, metavar="A,B", help="left and right ones (default: by names)"
    )
    add("--no-hflip", action="store_true", help="do not flip images")
    add("--use-copypaste", action="store_true", help="paste objects of other images; with --data-augmentation lsj")
    add("--backend", default="pil", type=str.lower, choices=BACKENDS, metavar="NAME", help="ignored; always PIL")
    add("--use-v2", action="store_true", help="ignored; the transforms are v2 always")


def run(args: argparse.Namespace) -> None:
    """Train and evaluate."""
    _check(args)
    torch.use_deterministic_algorithms(args.use_deterministic_algorithms)
    with processes(args.device, args.dist_url) as device, open_run(args, args.model) as log:
        torch.manual_seed(args.seed)
        batch = images_per_update(args)
        if args.lr == "auto":
            args.lr = _LR_OF_AN_IMAGE * batch
            if is_main():
                logger.info("--lr auto: %g for %d images an update", args.lr, batch)
        elif args.opt == "sgd" and args.lr > _FAR_ABOVE * _LR_OF_AN_IMAGE * batch and is_main():
            auto = _LR_OF_AN_IMAGE * batch
            logger.warning("--lr %g is high for %d images an update: --lr auto would be %g", args.lr, batch, auto)
        checkpoint = Checkpoint.of(args)
        if checkpoint is not None and not args.test_only:
            check_division(args, checkpoint.args)
        train_images, val_images = _images(args)
        model, spec = detector_to_train(args, train_images, checkpoint)
        spec = match(args, spec, train_images, val_images)
        args.implementations = _set_implementations(args, model.to(device), device, checkpoint)
        keep_losses_finite(model)
        task = _task(args, model, train_images, val_images, device)
        if args.test_only:
            _test(args, model, task)
            return
        goal: Task = task
        if args.teacher:
            options = {"weight": args.teacher_weight, "distance": args.teacher_distance}
            goal = by_features(task, load_teacher(args.teacher, spec), **options, channels=feature_channels(spec))
        state = make_state(args, model, spec, device, images=batch)
        data = {"train": coco_facts(train_images), "val": coco_facts(val_images)}
        options = {"accumulate": args.accumulate, "warm_up": True}
        images = partial(drawn_examples, val_images, spec.classes, device)
        train(args, state, goal, checkpoint, log, data=data, options=options, free=_FREE, images=images)


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail late."""
    if ("keypoints" in ARCHITECTURES[MODELS[args.model]].task.kinds) != (args.dataset == "coco_kp"):
        raise UsageError(f"--model {args.model} with --dataset {args.dataset}: keypoints need both, others neither")
    for name in ("keypoint_pairs", "keypoint_sigmas"):
        if getattr(args, name) and args.dataset != "coco_kp":
            raise UsageError(f"--{name.replace('_', '-')} with --dataset {args.dataset}: expected coco_kp")
    check_files(args)
    if args.use_copypaste and args.data_augmentation != "lsj":
        raise UsageError(f"--use-copypaste with --data-augmentation {args.data_augmentation}: expected lsj")
    check_training(args)


def _images(args: argparse.Namespace) -> tuple[CocoDataset, CocoDataset]:
    """Return the images to train on and those to evaluate on; with --test-only, the latter twice."""
    if is_main() and (args.use_v2 or args.backend != "pil"):
        logger.info("--backend and --use-v2 are ignored: images are decoded by PIL, then transformed by transforms v2")
    val_images = CocoDataset(args.data_path, "val", args.dataset, **files_of(args, "val"))
    if args.dataset == "coco_kp":
        set_sigmas(val_images.coco, args.keypoint_sigmas, val_images.annotations)
    if args.test_only:
        return val_images, val_images
    masks = "segm" in ARCHITECTURES[MODELS[args.model]].task.kinds or args.use_copypaste
    train_images = CocoDataset(
        args.data_path, "train", args.dataset, train=True, masks=masks, **files_of(args, "train")
    )
    train_images.transform = Augment(
        args.data_augmentation,
        train_images.keypoint_names,
        probability=0 if args.no_hflip else 0.5,
        pairs=args.keypoint_pairs,
    )
    return train_images, val_images


def _set_implementations(
    args: argparse.Namespace, model: Any, device: torch.device, checkpoint: Checkpoint | None
) -> dict[str, str]:
    """Set --implementation; return what auto chose, which the checkpoint keeps."""
    images = [torch.rand(3, *tuple(model.transform.min_size[-1:]) * 2, device=device)] * args.batch_size
    kept = kept_implementations(checkpoint)
    return use_implementation(model, args.implementation, lambda: images, kept=kept, amp=args.amp)


def _task(
    args: argparse.Namespace,
    model: nn.Module,
    train_images: CocoDataset,
    val_images: CocoDataset,
    device: torch.device,
) -> Detection:
    """Return what the detector is trained and evaluated on; wrong arguments are reported here, before the training."""
    batching = Batching(args.batch_size, args.seed, rank(), world_size())
    if not args.test_only:
        batching.steps(len(train_images))
        check_scalable(model, train_images)
    check_scalable(model, val_images)
    kinds = kinds_of(model)
    evaluated, limit = val_images.annotations, args.max_detections
    warn_of_detector_limit(model, val_images.coco.dataset, evaluated, limit)
    factor, workers = args.aspect_ratio_group_factor, args.workers
    return Detection(
        partial(training_batches, train_images, batching, factor=factor, workers=workers),
        partial(evaluation_batches, val_images, batching, workers=workers),
        device,
        CocoEvaluator(val_images.coco, kinds, name=evaluated, max_detections=limit),
        kinds,
        folder=Path(args.output_dir) if args.output_dir else None,
        mix=copy_paste if args.use_copypaste else None,
        labels=val_images.labels,
    )


def _test(args: argparse.Namespace, model: nn.Module, task: Detection) -> None:
    """Evaluate, write the files and print."""
    if args.output_dir:
        make_folder(args.output_dir)
    metrics = task.measure(model)
    if is_main():
        print(format_metrics(metrics))
