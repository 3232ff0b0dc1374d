"""The channel plan of torchvision's R-CNNs on a ResNet-50 with FPN, first and second version, and its scopes."""

from collections.abc import Iterator
from dataclasses import replace

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.models.architecture import RateEntry, Scope
from norton_det.models.resnet import RESNET50, STAGES

BODY = "backbone.body."
"""Where the ResNet-50 sits in a detector."""
WIDTH = 256
"""Of the pyramid, and of the convolutions that read it."""
_FPN, _INNER = "fpn", "fpn.inner"
_POOLED = 7 * 7  # positions of a proposal's features, flattened before the first linear layer


def rcnn_plan(kinds: tuple[str, ...], version: int = 1) -> ChannelPlan:
    """Return the plan of a whole detector; groups are named after the layer that writes them.

    The pyramid's laterals write one group, ``fpn.inner``, in which they are added from the top down. Its outputs write
    another one, ``fpn``, which the RPN and all heads read: the outputs are never added to each other.

    Args:
        kinds: what is predicted, in COCO's words: "bbox", and "segm" or "keypoints".
        version: 1, or 2 for the detectors of ``fasterrcnn_resnet50_fpn_v2`` and ``maskrcnn_resnet50_fpn_v2``: batch
            norms in pyramid and heads, two convolutions in the RPN, four convolutions and a linear layer in the box
            head.
    """
    body = tuple(layer for layer in RESNET50.plan.layers if layer.name != RESNET50.classifier)
    inside = ChannelPlan(RESNET50.plan.widths, body).inside(BODY)
    layers = [*inside.layers, *_pyramid(version), *_rpn(version), *_box_head(version)]
    if "segm" in kinds:
        layers += _mask_head(version)
    if "keypoints" in kinds:
        layers += _keypoint_head()
    own = {layer.writes: WIDTH for layer in layers if layer.writes and layer.writes not in inside.widths}
    own |= {group: 1024 for group in own if group.startswith("roi_heads.box_head.") and _is_linear(group)}
    own |= {group: 512 for group in own if group.startswith("roi_heads.keypoint_head.")}
    return ChannelPlan({**inside.widths, **own}, tuple(layers), frozenset({_FPN}))


def rcnn_scopes(plan: ChannelPlan) -> dict[str, Scope]:
    """Return the parts of a detector that can be compressed: its ResNet-50, as published, or all of it.

    The rates of the whole detector are those of the ResNet-50, then one for each further group in the plan's order.
    """
    further = [group for group in plan.widths if group not in RESNET50.plan.widths]
    rates = RESNET50.rate_order
    return {
        "backbone": Scope(BODY, rates),
        "detector": Scope("", (*rates, *(RateEntry(group, (group,)) for group in further))),
    }


def _is_linear(name: str) -> bool:
    return name.removeprefix("roi_heads.box_head.") in ("fc6", "fc7", "5")


def _pyramid(version: int) -> Iterator[Layer]:
    for i, stage in reversed(list(enumerate(STAGES))):
        yield from _conv(f"backbone.fpn.inner_blocks.{i}", (stage,), _INNER, norm=version == 2)
        yield from _conv(f"backbone.fpn.layer_blocks.{i}", (_INNER,), _FPN, norm=version == 2)
    yield Layer.norm("backbone", (_FPN,))  # which says how many channels it returns


def _rpn(version: int) -> Iterator[Layer]:
    source = _FPN
    for i in range(version):
        yield from _conv(f"rpn.head.conv.{i}", (source,))
        source = f"rpn.head.conv.{i}.0"
    yield from (Layer(f"rpn.head.{name}", (source,)) for name in ("cls_logits", "bbox_pred"))


def _box_head(version: int) -> Iterator[Layer]:
    head, source = "roi_heads.box_head", _FPN
    if version == 1:
        first, last = f"{head}.fc6", f"{head}.fc7"
        yield replace(Layer(first, (source,), first), spatial=_POOLED)
        yield Layer(last, (first,), last)
    else:
        for i in range(4):
            yield from _conv(f"{head}.{i}", (source,), norm=True)
            source = f"{head}.{i}.0"
        last = f"{head}.5"
        yield replace(Layer(last, (source,), last), spatial=_POOLED)
    yield from (Layer(f"roi_heads.box_predictor.{name}", (last,)) for name in ("cls_score", "bbox_pred"))


def _mask_head(version: int) -> Iterator[Layer]:
    source = _FPN
    for i in range(4):
        yield from _conv(f"roi_heads.mask_head.{i}", (source,), norm=version == 2)
        source = f"roi_heads.mask_head.{i}.0"
    upsampling = "roi_heads.mask_predictor.conv5_mask"
    yield Layer(upsampling, (source,), upsampling)
    yield Layer("roi_heads.mask_predictor.mask_fcn_logits", (upsampling,))


def _keypoint_head() -> Iterator[Layer]:
    source = _FPN
    for i in range(0, 16, 2):
        name = f"roi_heads.keypoint_head.{i}"
        yield Layer(name, (source,), name)
        source = name
    yield Layer("roi_heads.keypoint_predictor.kps_score_lowres", (source,))


def _conv(block: str, reads: tuple[str, ...], group: str | None = None, norm: bool = False) -> Iterator[Layer]:
    """Yield a convolution, which writes ``group`` or one of its own, and its batch norm, where it has one."""
    group = group or f"{block}.0"
    yield Layer(f"{block}.0", reads, group)
    if norm:
        yield Layer.norm(f"{block}.1", (group,))
