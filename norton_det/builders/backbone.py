"""``norton_det.backbone``: the compressed ResNet-50 of any file, for networks of other projects."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn import BatchNorm2d
from torchvision.models import WeightsEnum

from norton_det.builders.backbone_networks import BACKBONES, PYRAMID_BODY, Backbone, options_of
from norton_det.builders.backbone_source import Source, moved, read_backbone
from norton_det.builders.fine_tuning import fine_tuning_of
from norton_det.builders.new_detector import trainable_layers as number_of_trainable_layers
from norton_det.errors import UsageError, expect_choice
from norton_det.models.feature_maps import TRAINABLE_ORDER
from norton_det.models.weights import load_state
from norton_det.runtime.initialisation import without_initialisation
from norton_det.spec import Spec
from norton_det.structure.build import build_network
from norton_det.structure.describe import describe

logger = logging.getLogger(__name__)

_NORMS = {"frozen": "FrozenBatchNorm2d", "train": "BatchNorm2d"}


def backbone(
    weights: str | Path | WeightsEnum | None,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    norm: str | None = None,
    trainable_layers: int | None = None,
    fpn: bool = False,
    *,
    replace_stride_with_dilation: Sequence[bool] = (False, False, False),
    progress: bool = True,
) -> Backbone:
    """Return the ResNet-50 of a file, compressed as it is there, as a backbone for other networks.

    It maps images (N, 3, H, W) to an ordered dict of feature maps (N, C, H / stride, W / stride) with the keys "0",
    "1", ...; with a feature pyramid there is "pool" as well, as in torchvision's detectors. What others ask about it
    are its ``channels``, ``strides`` and ``out_channels``, ``feature_info`` as of timm, ``output_shape()`` as of
    detectron2. ``freeze()`` stops its training, and ``save(file)`` writes a file for this function.

    Args:
        weights: a file of ``norton_det.save`` or a training checkpoint, of a classifier, of a detector (whose backbone
            is taken out) or of a backbone; a state dict of one of them; torchvision's weights, or their name; None is
            a dense network with random weights.
        out_indices: the maps that are returned: 0 is the stem, 1 to 4 are the stages. A pyramid is built on these
            stages.
        norm: "frozen" for batch norms with fixed statistics (``FrozenBatchNorm2d``), "train" for ``BatchNorm2d``. None:
            frozen when any weights are given, as in torchvision, unless they were compressed and neither calibrated nor
            trained since.
        trainable_layers: how many of the last parts of the ResNet are trained, 0 to 5. None: 3 with weights, as in
            torchvision, all without, or where the weights were compressed and not trained since.
        fpn: with a feature pyramid: that of the file, compressed as it is there, or else a new one.
        replace_stride_with_dilation: for stages 2, 3 and 4, as torchvision's ResNets have it: maps as large as those of
            the stage before, for segmentation.
        progress: show the progress of a download.

    Raises:
        UsageError: a wrong argument; the file has no ResNet-50.
        DataError: the file is missing, damaged or does not fit.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> body = nd.backbone(None, out_indices=(2, 3, 4))
        >>> {key: tuple(maps.shape) for key, maps in body(torch.rand(1, 3, 64, 64)).items()}
        {'0': (1, 512, 8, 8), '1': (1, 1024, 4, 4), '2': (1, 2048, 2, 2)}
        >>> body.channels, body.strides, nd.backbone(None, fpn=True).out_channels
        ((512, 1024, 2048), (8, 16, 32), 256)
    """
    source = read_backbone(weights, progress=progress)
    return backbone_of(source, out_indices, norm, trainable_layers, fpn, replace_stride_with_dilation)


def backbone_of(
    source: Source,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    norm: str | None = None,
    trainable_layers: int | None = None,
    fpn: bool = False,
    dilated: Sequence[bool] = (False, False, False),
) -> Backbone:
    """Return the backbone that was read; arguments and errors as of :func:`backbone`."""
    trained = bool(source.state)
    rule = fine_tuning_of(source.spec, BACKBONES[0], trained=trained)
    # All is trained without weights: torchvision warns of any number, also of that one.
    number = None if not trained and trainable_layers == len(TRAINABLE_ORDER) else trainable_layers
    layers = number_of_trainable_layers(trained, number, rule.layers)
    source = source if fpn else source.without_pyramid()
    version = source.version or int(fpn)
    new_pyramid = version > source.version
    options = {"norm_layer": BatchNorm2d.__name__, **rule.options, **_options(norm, out_indices, dilated, source.spec)}
    spec = moved(source.spec, BACKBONES[version], "", PYRAMID_BODY if new_pyramid else "", options)
    with without_initialisation() if trained and not new_pyramid else nullcontext():
        net: Any = build_network(spec, BACKBONES[version]).module
    if trained:
        load_state(net.body if new_pyramid else net, source.state, source.name)
    if any(dilated):  # it is one of the attributes, as in any network that was given
        spec = replace(spec, attributes=describe(net, spec.arch).attributes)
    net.spec = replace(spec, options=options_of(net))
    net.freeze(layers)
    if rule.reason and None in (norm, trainable_layers):
        logger.info(
            "%s: %s: norms are %s, %d layers are trained",
            source.name,
            rule.reason,
            type(net.stages.bn1).__name__,
            layers,
        )
    assert isinstance(net, Backbone)
    return net


def _options(norm: str | None, out_indices: Sequence[int], dilated: Sequence[bool], spec: Spec) -> dict[str, Any]:
    """Return the options of the builder that were asked for, those that are not the default ones."""
    options: dict[str, Any] = {}
    if norm is not None:
        expect_choice("norm", norm, _NORMS)
        options["norm_layer"] = _NORMS[norm]
    if tuple(out_indices) != (1, 2, 3, 4):
        options["out_indices"] = list(out_indices)
    if any(dilated):
        if any(path.endswith((".stride", ".dilation")) for path in spec.attributes):
            raise UsageError(
                f"replace_stride_with_dilation is {list(dilated)}; the file has strides of its own already"
            )
        options["replace_stride_with_dilation"] = list(dilated)
    return options
