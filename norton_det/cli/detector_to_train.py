"""The detector that a training starts with: new, with given weights, or that of the run that is resumed."""

import argparse
import logging
from dataclasses import replace

from torch import nn

from norton_det.builders import freeze_backbone, make_detector, with_classes
from norton_det.builders.fine_tuning import trainable_stages
from norton_det.cli.training_options import Checkpoint
from norton_det.compression.compress import compress
from norton_det.config import COMPRESSION
from norton_det.data import CocoDataset
from norton_det.runtime.distributed import is_main
from norton_det.spec import Spec
from norton_det.structure.history import TRAINING, with_step

logger = logging.getLogger(__name__)

MODELS = {
    f"{kind}rcnn_{net}_{fpn}": f"{kind}rcnn_cpresnet50_{fpn}"
    for fpn, kinds in (("fpn", ("faster", "mask", "keypoint")), ("fpn_v2", ("faster", "mask")))
    for kind in kinds
    for net in ("cpresnet50", "resnet50")
}
"""Names of ``--model``: torchvision's dense detectors are the compressible ones with nothing compressed."""
OF_A_NEW_DETECTOR = ("rank", "rates", "min_size", "max_size", "model_kwargs", "norm_layer", "weights_backbone")
"""Arguments that only a new detector has: when a run is resumed they are ignored."""


def detector_to_train(
    args: argparse.Namespace, train_images: CocoDataset, checkpoint: Checkpoint | None
) -> tuple[nn.Module, Spec]:
    """Return the detector to train, and its spec.

    Args:
        args: of the command; ``trainable_backbone_layers`` is set.
        train_images: what it is trained on.
        checkpoint: of the run that is resumed.

    Raises:
        UsageError: an argument is wrong.
        DataError: a file is missing, damaged or does not fit.
    """
    if checkpoint is not None:
        model, spec = checkpoint.network()
        args.trainable_backbone_layers = checkpoint.args.get("trainable_backbone_layers", 5)  # as it was trained
        warn_of_ignored(args, checkpoint)
    else:
        model, spec = _new_detector(args, train_images)
    freeze_backbone(model, args.trainable_backbone_layers)
    return (nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.sync_bn else model), spec


def warn_of_ignored(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Warn of arguments that only a new detector has, where they differ from those of the run that is resumed."""
    given = {name: getattr(args, name) for name in OF_A_NEW_DETECTOR if getattr(args, name) not in (None, {})}
    for name, value in given.items():
        if value != checkpoint.args.get(name) and is_main():
            flag = name.replace("_", "-")
            logger.warning("--resume: --%s %s is ignored: the detector is that of %s", flag, value, checkpoint.path)


def _new_detector(args: argparse.Namespace, train_images: CocoDataset) -> tuple[nn.Module, Spec]:
    """Return a detector with the weights of the arguments, compressed if they say so, and its spec."""
    options = dict(args.model_kwargs)
    given = {"min_size": args.min_size, "max_size": args.max_size, "rpn_score_thresh": args.rpn_score_thresh}
    options |= {name: value for name, value in given.items() if value is not None}
    labels = train_images.labels
    compressing = args.rank is not None or args.rates is not None
    model, spec = make_detector(
        MODELS[args.model],
        weights=args.weights,
        weights_backbone=args.weights_backbone,
        classes=None if args.weights else labels.classes,
        keypoints=None if args.weights else train_images.keypoint_names,
        trainable_backbone_layers=args.trainable_backbone_layers,
        norm_layer=args.norm_layer,
        to_compress=compressing,
        **options,
    )
    args.trainable_backbone_layers = trainable_stages(model)
    if args.weights and not args.test_only and not labels.are_those_of(spec):
        model, spec = with_classes(model, spec, labels.classes, train_images.keypoint_names, source=args.weights)
    if compressing and (spec.decompositions or spec.widths):
        source = args.weights or args.weights_backbone
        logger.warning("%s: is compressed already; --rank and --rates are ignored", source)
    elif compressing:
        model, spec = compress(model, arch=spec, **{name: getattr(args, name) for name in (*COMPRESSION, "seed")})
    return model, with_step(spec, TRAINING, {"command": "train-det", "epochs": args.epochs})


def match(args: argparse.Namespace, spec: Spec, train_images: CocoDataset, val_images: CocoDataset) -> Spec:
    """Match the detector with the data by the names of the classes; return its spec with the names.

    Raises:
        DataError: the data has classes or keypoints that the detector lacks.
    """
    source = args.resume or args.weights
    if not args.test_only:
        train_images.match(spec, source)
        spec = replace(spec, classes=train_images.labels.classes, keypoints=train_images.labels.keypoints)
    val_images.match(spec, source or train_images.annotations)
    return spec
