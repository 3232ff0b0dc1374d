"""Where a backbone comes from: the file of a classifier, of a detector or of a backbone, or published weights."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.builders.backbone_networks import BACKBONES, IN_DETECTOR, PYRAMID_BODY
from norton_det.checkpoint import has_spec, read_network
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.resnet import RESNET50
from norton_det.models.state_dicts import read_state_dict
from norton_det.models.weights import published_state
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network
from norton_det.structure.describe import described
from norton_det.structure.published_files import ranks_in, widths_in

T = TypeVar("T")
logger = logging.getLogger(__name__)

_KEPT_OPTIONS = ("norm_layer", "out_indices")
_CLASSIFIER = ("avgpool", RESNET50.classifier)
_STEM, _NORM_IN_PYRAMID = "conv1.weight", "fpn.inner_blocks.0.1.weight"
STEMS = frozenset({_STEM, PYRAMID_BODY + _STEM, IN_DETECTOR + _STEM, IN_DETECTOR + PYRAMID_BODY + _STEM})
"""Tensors by which the place of a ResNet-50 in a state dict is recognised."""


class Source(NamedTuple):
    """A backbone that was read.

    Attributes:
        spec: of one of the backbones' architectures.
        state: its tensors; empty where there are none.
        version: of its feature pyramid, 1 or 2; 0 without one.
        name: where it comes from.
    """

    spec: Spec
    state: Mapping[str, Tensor]
    version: int
    name: str

    def without_pyramid(self) -> "Source":
        """Return the ResNet-50 alone."""
        if self.version == 0:
            return self
        spec = moved(self.spec, BACKBONES[0], PYRAMID_BODY, "", self.spec.options)
        return Source(spec, _renamed(self.state, PYRAMID_BODY, ""), 0, self.name)

    def for_detector(self, architecture: Architecture) -> tuple["Source", str]:
        """Return what a detector has a place for, and the prefix of that place; another pyramid is left out."""
        source = self
        if self.version not in (0, _version(architecture.name)):
            logger.info("%s: its feature pyramid is not that of %s, and is left out", self.name, architecture.name)
            source = self.without_pyramid()
        return source, IN_DETECTOR + ("" if source.version else PYRAMID_BODY)


def read_backbone(weights: str | Path | WeightsEnum | None, *, progress: bool = True) -> Source:
    """Read a backbone, from whatever it is in.

    Args:
        weights: a file of ``norton_det.save`` or a training checkpoint, of a classifier, a detector or a backbone; a
            state dict of one of them; torchvision's weights for them, or their name; None for none.
        progress: show the progress of a download.

    Raises:
        UsageError: it is of another architecture.
        DataError: the file is missing, damaged, or is no state dict.
    """
    if weights is None:
        return Source(Spec(BACKBONES[0].name, 0), {}, 0, "none")
    if isinstance(weights, (str, Path)) and has_spec(weights):
        return _of_spec(*read_network(weights), str(weights))
    if named := _published(weights):
        return backbone_in(published_state(named, progress=progress), str(named))
    return backbone_in(read_state_dict(str(weights), STEMS), str(weights))


def moved(spec: Spec, architecture: Architecture, take: str, put: str, options: Mapping[str, Any]) -> Spec:
    """Return the spec of a network of another architecture that shares a part with this one.

    Args:
        spec: of the network that has the part.
        architecture: of the other network.
        take: prefix of the names of the part.
        put: prefix that they get in its place.
        options: of the other network's builder.
    """
    groups = architecture.plan.widths
    # Frozen norms have no momentum; those of a pyramid are not frozen.
    frozen = options.get("norm_layer") in (FrozenBatchNorm2d, FrozenBatchNorm2d.__name__)
    attributes = {
        path: value
        for path, value in _renamed(spec.attributes, take, "").items()
        if "." in path and not (frozen and path.endswith(".momentum") and not path.startswith("fpn."))
    }
    return Spec(
        architecture.name,
        architecture.num_classes,
        _renamed(spec.decompositions, take, put),
        widths={group: width for group, width in spec.widths.items() if group in groups},
        kept={group: channels for group, channels in spec.kept.items() if group in groups},
        options=options,
        attributes=_renamed(attributes, "", put),
        provenance=spec.provenance,
    )


def _renamed(values: Mapping[str, T], take: str, put: str) -> dict[str, T]:
    """Return what is named by layers of a ResNet-50 or what is around it, but for a classifier, under new names."""
    inside = {name.removeprefix(take): value for name, value in values.items() if name.startswith(take)}
    return {put + name: value for name, value in inside.items() if name.split(".")[0] not in _CLASSIFIER}


def _published(weights: str | Path | WeightsEnum) -> WeightsEnum | None:
    """Return torchvision's weights of a name; those of detectors are named with their class.

    Raises:
        UsageError: they are weights of something else.
    """
    enums = [architecture.weights for architecture in (RESNET50, *_detectors()) if architecture.weights]
    for enum in enums:
        if isinstance(weights, enum):
            return weights
        kind, _, member = str(weights).rpartition(".")
        if member in enum.__members__ and kind in (enum.__name__, *([""] if enum is RESNET50.weights else [])):
            return enum[member]
    if isinstance(weights, WeightsEnum):
        raise UsageError(
            f"weights {weights} have no ResNet-50; expected one of: {', '.join(e.__name__ for e in enums)}"
        )
    return None


def _detectors() -> list[Architecture]:
    """Return the architectures that have a backbone inside."""
    return [ARCHITECTURES[name] for name in ARCHITECTURES if _has(name, IN_DETECTOR + PYRAMID_BODY + "conv1")]


def _has(arch: str, layer: str) -> bool:
    return any(each.name == layer for each in ARCHITECTURES[arch].plan.layers)


def _version(arch: str) -> int:
    """Return the version of a detector's feature pyramid."""
    return 2 if _has(arch, IN_DETECTOR + _NORM_IN_PYRAMID.removesuffix(".weight")) else 1


def _of_spec(spec: Spec, state: Mapping[str, Tensor], name: str) -> Source:
    versions = {architecture.name: version for version, architecture in BACKBONES.items()} | {RESNET50.name: 0}
    take = ""
    if spec.arch not in versions:
        if ARCHITECTURES[spec.arch] not in _detectors():
            raise UsageError(f"{name}: is a {spec.arch}; expected a resnet50, or a detector or backbone with one")
        take = IN_DETECTOR
        versions[spec.arch] = _version(spec.arch)
    version = versions[spec.arch]
    if take == "" and not spec.options.keys() <= set(_KEPT_OPTIONS):  # they become attributes
        network = build_network(spec, ARCHITECTURES[spec.arch], "meta")
        found = described(network.module, network.architecture).spec
        spec = replace(spec, options=found.options, attributes=found.attributes)
    options = {key: value for key, value in spec.options.items() if key in _KEPT_OPTIONS}
    return Source(moved(spec, BACKBONES[version], take, "", options), _renamed(state, take, ""), version, name)


def backbone_in(state: Mapping[str, Tensor], name: str) -> Source:
    """Return the backbone in a state dict; ranks of CP blocks and widths are those of the tensors.

    Args:
        state: of a ResNet-50, or of a network with one inside, such as a detector.
        name: where it comes from: a file, or a name.

    Raises:
        DataError: there is no ResNet-50 in it.
    """
    take = next((take for take in (IN_DETECTOR, "") if {take + _STEM, take + PYRAMID_BODY + _STEM} & state.keys()), "")
    inside = _renamed(state, take, "")
    version = 0
    if PYRAMID_BODY + _STEM in inside:
        version = 2 if _NORM_IN_PYRAMID in inside else 1
    elif _STEM not in inside:
        raise DataError(
            f"{name}: has no tensor {_STEM!r}; expected the weights of a resnet50, or of a network with one"
        )
    architecture = BACKBONES[version]
    ranks, full = ranks_in(inside, architecture), architecture.plan.widths
    spec = Spec(
        architecture.name,
        0,
        {layer: DecomposedLayer("cp", rank) for layer, rank in ranks.items()},
        {group: width for group, width in widths_in(inside, architecture, ranks).items() if width < full[group]},
        provenance={"source": Path(name).name},
    )
    return Source(spec, inside, version, name)
