"""Train Faster, Mask or Keypoint R-CNN with a compressed (or dense) ResNet-50-FPN backbone on a COCO folder.

Flags and defaults are those of torchvision's reference detection script, as far as they stand here.
Its default --lr is meant for 8 processes with 2 images each; for one process of B images use 0.02 / 16 * B.
"""

import argparse
import datetime
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from norton_det.checkpoint import load, write_json
from norton_det.cli import Parser, check_counts, check_device, command
from norton_det.data import AspectRatioBatchSampler, Augment, CocoDataset, collate
from norton_det.detection import freeze_backbone, make_detector
from norton_det.engine import TrainingState, evaluate_results, format_metrics, kinds_of, predict, train_one_epoch
from norton_det.engine.optim import make_optimizer, make_schedule
from norton_det.errors import UsageError
from norton_det.spec import Spec
from norton_det.weights import read_file

logger = logging.getLogger(__name__)

MODELS = {
    f"{kind}rcnn_{net}_fpn": f"{kind}rcnn_cpresnet50_fpn"
    for kind in ("faster", "mask", "keypoint")
    for net in ("cpresnet50", "resnet50")
}
"""Names of ``--model``: torchvision's dense detectors are the compressible ones with nothing compressed."""


def get_args_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-path", default="coco", help="COCO folder: train2017/ val2017/ annotations/")
    add("--dataset", default="coco", help="coco (instances) or coco_kp (person keypoints)")
    add("--model", default="maskrcnn_resnet50_fpn", help=f"one of: {', '.join(MODELS)}")
    add("--device", default="cuda", help="cuda or cpu")
    add("-b", "--batch-size", default=2, type=int, help="images a batch")
    add("--epochs", default=26, type=int, metavar="N", help="number of epochs in all")
    add("-j", "--workers", default=4, type=int, metavar="N", help="processes that load data")
    add("--opt", default="sgd", help="sgd, sgd_nesterov or adamw")
    add("--lr", default=0.02, type=float, help="initial learning rate")
    add("--momentum", default=0.9, type=float, metavar="M")
    add("--wd", "--weight-decay", default=1e-4, type=float, metavar="W", dest="weight_decay")
    add("--norm-weight-decay", default=None, type=float, help="weight decay of normalisation layers (default: --wd)")
    add("--lr-scheduler", default="multisteplr", help="multisteplr or cosineannealinglr")
    add("--lr-steps", default=[16, 22], nargs="+", type=int, help="epochs after which the rate falls")
    add("--lr-gamma", default=0.1, type=float, help="by this factor")
    add("--print-freq", default=20, type=int, help="iterations between log lines")
    add("--output-dir", default=".", help="where checkpoints and results go")
    add("--resume", default="", help="checkpoint to go on from")
    add("--start_epoch", default=0, type=int, help="number of the first epoch")
    add("--aspect-ratio-group-factor", default=3, type=int, help="batch images of similar shape; -1: do not")
    add("--rpn-score-thresh", default=None, type=float, help="least score of a proposal")
    add("--trainable-backbone-layers", default=None, type=int, help="0 to 5, from the last stage")
    add("--data-augmentation", default="hflip", help="hflip, lsj, multiscale, ssd or ssdlite")
    add("--test-only", action="store_true", help="evaluate and stop")
    add("--use-deterministic-algorithms", action="store_true")
    add("--weights", default=None, help="of the whole detector: a file, or the name of torchvision's")
    add("--weights-backbone", default=None, help="compressed file, state dict, or the name of torchvision's")
    add("--amp", action="store_true", help="mixed precision")
    # Beyond torchvision's:
    add("--min-size", default=None, type=int, help="length to which an image's shorter side is scaled (default: 800)")
    add("--max-size", default=None, type=int, help="bound on the longer side (default: 1333)")
    add(
        "--norm-layer", default=None, help="of the backbone: BatchNorm2d or FrozenBatchNorm2d (default: as torchvision)"
    )
    add(
        "--model-kwargs",
        default="{}",
        type=_json_object,
        metavar="JSON",
        help="further arguments of the detector, as "
        '\'{"anchor_sizes": [[8], [16], [32], [64], [128]], "rpn_post_nms_top_n_train": 200}\'',
    )
    add("--seed", default=0, type=int, help="of weights, order and augmentation")
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, train and evaluate."""
    args = get_args_parser().parse_args(argv)
    _check(args)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(args.use_deterministic_algorithms)
    device = torch.device(args.device)
    masks = args.model.startswith("mask")
    train = CocoDataset(args.data_path, "train", args.dataset, train=True, masks=masks)
    train.transform = Augment(args.data_augmentation, train.keypoint_names)
    val = CocoDataset(args.data_path, "val", args.dataset)
    model, spec = _model(args, train)
    model.to(device)
    optimizer = make_optimizer(
        model,
        args.opt,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        norm_weight_decay=args.norm_weight_decay,
    )
    schedule = make_schedule(optimizer, args.lr_scheduler, epochs=args.epochs, steps=args.lr_steps, gamma=args.lr_gamma)
    scaler = torch.amp.GradScaler(device.type) if args.amp else None
    state = TrainingState(model, spec, optimizer, schedule, scaler, epoch=args.start_epoch - 1)
    if args.resume:
        state.restore(read_file(args.resume), args.resume)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    if args.test_only:
        _evaluate(model, val, device, args)
    else:
        _train(state, train, val, device, args)


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail late."""
    if args.model not in MODELS:
        raise UsageError(f"--model {args.model}: unknown; expected one of: {', '.join(MODELS)}")
    if args.model.startswith("keypoint") != (args.dataset == "coco_kp"):
        raise UsageError(f"--model {args.model} with --dataset {args.dataset}: keypoints need both, others neither")
    check_counts(args, batch_size=1, epochs=1, workers=0, print_freq=1)
    check_device(args.device)


def _model(args: argparse.Namespace, train: CocoDataset) -> tuple[nn.Module, Spec]:
    if args.resume:
        model, spec = load(args.resume)
        saved = read_file(args.resume).get("args", {})
        freeze_backbone(model, saved.get("trainable_backbone_layers", 5))
        args.trainable_backbone_layers = saved.get("trainable_backbone_layers", 5)
        return model, spec
    options = dict(args.model_kwargs)
    given = {"min_size": args.min_size, "max_size": args.max_size, "rpn_score_thresh": args.rpn_score_thresh}
    options |= {name: value for name, value in given.items() if value is not None}
    if train.keypoint_names:
        options["num_keypoints"] = len(train.keypoint_names)
    detector = make_detector(
        MODELS[args.model],
        weights=args.weights,
        weights_backbone=args.weights_backbone,
        num_classes=train.num_classes,
        trainable_backbone_layers=args.trainable_backbone_layers,
        norm_layer=args.norm_layer,
        **options,
    )
    # Recorded for --resume, which has to freeze the same layers.
    trained = args.weights or args.weights_backbone
    if not trained or args.trainable_backbone_layers is None:
        args.trainable_backbone_layers = 3 if trained else 5
    return detector


def _train(
    state: TrainingState, train: CocoDataset, val: CocoDataset, device: torch.device, args: argparse.Namespace
) -> None:
    sampler = AspectRatioBatchSampler(train.aspect_ratios(), args.batch_size, args.aspect_ratio_group_factor, args.seed)
    if not len(sampler):
        raise UsageError(f"--batch-size {args.batch_size}: {train.annotations} has {len(train)} images for training")
    generator = torch.Generator()
    batches = DataLoader(
        train, batch_sampler=sampler, num_workers=args.workers, collate_fn=collate, generator=generator
    )
    start = time.time()
    for epoch in range(state.epoch + 1, args.epochs):
        sampler.set_epoch(epoch)
        generator.manual_seed(args.seed * 1_000_003 + epoch)  # of the augmentation in the workers
        train_one_epoch(
            state.model, state.optimizer, batches, device, epoch, print_freq=args.print_freq, scaler=state.scaler
        )
        state.schedule.step()
        state.epoch = epoch
        state.save(args.output_dir, vars(args))
        _evaluate(state.model, val, device, args)
    logger.info("Training time %s", datetime.timedelta(seconds=int(time.time() - start)))


def _evaluate(model: nn.Module, val: CocoDataset, device: torch.device, args: argparse.Namespace) -> None:
    batches = DataLoader(val, batch_size=1, num_workers=args.workers, collate_fn=collate)
    results = predict(model, batches, device)
    write_json(Path(args.output_dir) / "coco_instances_results.json", results)
    metrics = evaluate_results(val.coco, results, kinds_of(model))
    write_json(Path(args.output_dir) / "metrics.json", metrics)
    print(format_metrics(metrics), flush=True)


if __name__ == "__main__":
    sys.exit(main())
