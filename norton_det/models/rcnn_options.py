"""The builder's options that rebuild an R-CNN, read off the network."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from norton_det.errors import UsageError

ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Of the anchors of every level, as torchvision's detectors with FPN have them."""
ANCHOR_SIZES = ((32,), (64,), (128,), (256,), (512,))
"""In pixels, of each level, likewise."""
PROPOSALS_OPTION = "rpn_post_nms_top_n_test"
"""The limit of the proposals for an image in evaluation."""


def options_of(net: nn.Module, builder: Callable[..., nn.Module]) -> dict[str, Any]:
    """Return the options with which ``builder`` rebuilds ``net``: those that differ from its defaults, as JSON values.

    The defaults are read off the network that ``builder`` makes without options. Heads of the user's own making are not
    among the options; a file for such a detector is refused when it is saved.

    Raises:
        UsageError: the anchors have other aspect ratios than torchvision's detectors with FPN.
    """
    defaults = _defaults(builder)
    return {name: value for name, value in _all_options(net).items() if value != defaults[name]}


def limit_proposals(net: Any, count: int) -> dict[str, int]:
    """Limit the proposals of an R-CNN in evaluation, in place; return the builder's option that does the same."""
    net.rpn._post_nms_top_n["testing"] = count
    return {PROPOSALS_OPTION: count}


@cache
def _defaults(builder: Callable[..., nn.Module]) -> dict[str, Any]:
    with torch.device("meta"):
        return _all_options(builder(num_classes=2))


def _all_options(net: Any) -> dict[str, Any]:
    transform, rpn, heads = net.transform, net.rpn, net.roi_heads
    ratios = {tuple(map(float, level)) for level in rpn.anchor_generator.aspect_ratios}
    if ratios != {ASPECT_RATIOS}:
        raise UsageError(f"anchor aspect ratios {sorted(ratios)} cannot be described; expected {ASPECT_RATIOS}")
    options = {
        "norm_layer": type(net.backbone.body.bn1).__name__,
        "min_size": list(transform.min_size),
        "max_size": transform.max_size,
        "fixed_size": None if transform.fixed_size is None else list(transform.fixed_size),
        "size_divisible": transform.size_divisible,
        "image_mean": list(transform.image_mean),
        "image_std": list(transform.image_std),
        "anchor_sizes": [list(level) for level in rpn.anchor_generator.sizes],
        "rpn_pre_nms_top_n_train": rpn._pre_nms_top_n["training"],
        "rpn_pre_nms_top_n_test": rpn._pre_nms_top_n["testing"],
        "rpn_post_nms_top_n_train": rpn._post_nms_top_n["training"],
        PROPOSALS_OPTION: rpn._post_nms_top_n["testing"],
        "rpn_nms_thresh": rpn.nms_thresh,
        "rpn_score_thresh": rpn.score_thresh,
        "rpn_fg_iou_thresh": rpn.proposal_matcher.high_threshold,
        "rpn_bg_iou_thresh": rpn.proposal_matcher.low_threshold,
        "rpn_batch_size_per_image": rpn.fg_bg_sampler.batch_size_per_image,
        "rpn_positive_fraction": rpn.fg_bg_sampler.positive_fraction,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "box_fg_iou_thresh": heads.proposal_matcher.high_threshold,
        "box_bg_iou_thresh": heads.proposal_matcher.low_threshold,
        "box_batch_size_per_image": heads.fg_bg_sampler.batch_size_per_image,
        "box_positive_fraction": heads.fg_bg_sampler.positive_fraction,
        "bbox_reg_weights": list(heads.box_coder.weights),
    }
    if heads.keypoint_predictor is not None:
        options["num_keypoints"] = heads.keypoint_predictor.kps_score_lowres.out_channels
    return options
