"""What a compressed network is: a standard architecture plus a small, readable spec."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from norton_det.errors import DataError, UsageError, expect, shown
from norton_det.json_text import json_object
from norton_det.version import __version__

VERSION = 3
"""Format version of what is written. It rises whenever a file's content gains meaning; older versions are read.

0 (not written in the file): one decomposition method for all layers. 1: a method for each layer; SHA-256 of the
tensors. 2: the names of classes and keypoints, and options of builders that earlier releases do not know.
"""
MOST = 2**31 - 1
"""Limit of counts: of classes, channels and terms."""
UNUSED = "N/A"  # the name of a label without a class, in torchvision as well
_STEPS = ("backbone", "decompose", "prune", "calibrate", "reconstruct", "train")
Rank = int | tuple[int, int]
"""Of a layer: the number of terms of CP; of Tucker-2 the channels before and after the core, one number for both."""


class DecomposedLayer(NamedTuple):
    """How one layer is decomposed: the registered name of the method, and the rank.

    Example:
        >>> from norton_det import DecomposedLayer
        >>> DecomposedLayer("tucker2", (8, 12)).rank
        (8, 12)
    """

    method: str
    rank: Rank


@dataclass(frozen=True)
class Spec:
    """What tells a compressed network apart from the standard one.

    Attributes:
        arch: registered name of the architecture.
        num_classes: outputs of the classifier; for detectors the background is one of them. 0: there is no classifier.
        decompositions: method and rank of each decomposed layer, by layer name. Methods may differ between layers.
        widths: number of channels kept in each narrowed channel group.
        kept: which of the group's original channels were kept, ascending, where that is known. It decides how a
            shortcut between groups of different channels is wired; without it the first ``widths[group]`` are meant.
        options: further keyword arguments of the architecture's builder (JSON values).
        attributes: plain attributes in which the standard network's modules differ from what the builder makes, by
            path: ``{"layer4.0.conv2.dilation": (2, 2)}``. Numbers, text, None, and sequences or mappings of those.
        provenance: where the weights came from and what was done to them. It is for people: nothing reads it.
        classes: names of the classes by label, as in torchvision's ``weights.meta["categories"]``: the first one of a
            detector is the background, and "N/A" is a label without a class. Empty: unknown.
        keypoints: names of the keypoints in order. Empty: unknown, or no keypoints.

    Example:
        >>> from norton_det import DecomposedLayer, Spec
        >>> spec = Spec("resnet56_cifar", 10, {"conv1": DecomposedLayer("cp", 2)}, {"layer1": 12})
        >>> spec.ranks
        {'conv1': 2}
        >>> Spec.from_json(spec.to_json()) == spec
        True
    """

    arch: str
    num_classes: int
    decompositions: Mapping[str, DecomposedLayer] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    keypoints: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check types and values.

        Raises:
            DataError: a field has a wrong type or value.
        """
        expect(isinstance(self.arch, str), "spec field arch", self.arch, "a string")
        counted = type(self.num_classes) is int and 0 <= self.num_classes <= MOST
        expect(counted, "spec field num_classes", self.num_classes, "a positive integer, or 0 without a classifier")
        for name in ("decompositions", "widths", "kept", "options", "attributes", "provenance"):
            expect(isinstance(getattr(self, name), Mapping), f"spec field {name}", getattr(self, name), "a mapping")
        _check_history("spec field provenance", self.provenance)
        layers = {name: _decomposed(name, layer) for name, layer in self.decompositions.items()}
        object.__setattr__(self, "decompositions", layers)
        for key, value in self.widths.items():
            expect(is_count(value), f"spec field widths[{key!r}]", value, "a positive integer")
        for group, channels in self.kept.items():
            numbers = isinstance(channels, (list, tuple)) and all(type(c) is int and 0 <= c <= MOST for c in channels)
            expect(numbers, f"spec field kept[{group!r}]", channels, "a list of channel numbers")
            ascending = list(channels) == sorted(set(channels))
            expect(ascending, f"spec field kept[{group!r}]", channels, "distinct channel numbers in ascending order")
            width, where = self.widths.get(group), f"spec field kept[{group!r}]"
            expect(width == len(channels), where, f"{len(channels)} channels", f"widths[...] = {width}")
        for path, attribute in self.attributes.items():
            expected = "a number, text, null, or a list or object of those"
            expect(is_plain(attribute), f"spec field attributes[{path!r}]", attribute, expected)
        object.__setattr__(self, "attributes", {path: frozen(value) for path, value in self.attributes.items()})
        object.__setattr__(self, "kept", {group: tuple(channels) for group, channels in self.kept.items()})
        for name in ("classes", "keypoints"):
            object.__setattr__(self, name, _names(f"spec field {name}", getattr(self, name)))
        named = len(self.classes) in (0, self.num_classes)
        expect(named, "spec field classes", list(self.classes), f"{self.num_classes} names, or none")

    @property
    def ranks(self) -> dict[str, Rank]:
        """The rank of each decomposed layer."""
        return {name: layer.rank for name, layer in self.decompositions.items()}

    def to_json(self, indent: int | None = None) -> str:
        """Return the spec as JSON text with its format version, fields in order.

        Raises:
            UsageError: an option is no JSON value (a module given to a detector's builder, for example).
        """
        for key, value in self.options.items():
            try:
                json.dumps(value)
            except TypeError:
                raise UsageError(
                    f"options[{key!r}] is a {type(value).__name__}, which a file cannot hold; "
                    "save the state dict instead and rebuild with the same argument"
                ) from None
        values = asdict(self)
        values["decompositions"] = {name: layer._asdict() for name, layer in self.decompositions.items()}
        return json.dumps({"version": VERSION, "norton_det": __version__, **values}, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Read the text of :meth:`to_json`, of this format version or an older one.

        Raises:
            DataError: not JSON, a newer format version, an unknown or missing field, or a wrong value.
        """
        values = _of_this_version(json_object(text, "spec"))
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise DataError(f"spec has unknown fields {', '.join(unknown)}; expected {', '.join(names)}")
        if missing := [name for name in ("arch", "num_classes") if name not in values]:
            raise DataError(f"spec lacks {', '.join(missing)}")
        return cls(**values)


def version_of(text: str) -> int:
    """Return the format version of a spec's JSON text; 0 where none is written.

    Raises:
        DataError: the text is no JSON object, or the version no number.
    """
    version = json_object(text, "spec").get("version", 0)
    expect(isinstance(version, int), "spec field version", version, "a whole number")
    return int(version)


def check_version(text: str) -> None:
    """Check that the spec in a JSON text has a format version that this release reads.

    Raises:
        DataError: it is newer; the message says which release is needed. Or the text is no JSON object.
    """
    values = json_object(text, "spec")
    _check_version(values.get("version", 0), values.get("norton_det", "an unknown release"))


def _check_version(version: object, writer: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise DataError(f"spec field version is {shown(version)}; expected an integer from 0 to {VERSION}")
    if version > VERSION:
        expect(isinstance(writer, str), "spec field norton_det", writer, "the release that wrote the file")
        raise DataError(
            f"format version {version}, written by norton_det {writer}; this norton_det ({__version__}) reads "
            f"versions up to {VERSION}: install norton_det {writer} or newer"
        )


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec of any readable format version, as this version names them."""
    values = dict(values)
    _check_version(version := values.pop("version", 0), values.pop("norton_det", "an unknown release"))
    if version == 0:  # one method for all layers
        method, ranks = values.pop("decomposition", "cp"), values.pop("ranks", {})
        expect(isinstance(ranks, Mapping), "spec field ranks", ranks, "a mapping")
        values["decompositions"] = {name: {"method": method, "rank": rank} for name, rank in ranks.items()}
    return values


def _decomposed(name: str, value: Any) -> DecomposedLayer:
    """Return the method and rank of a layer from a pair or a JSON object."""
    where = f"spec field decompositions[{name!r}]"
    if isinstance(value, Mapping):
        expect(value.keys() == set(DecomposedLayer._fields), where, dict(value), "the fields method and rank")
        value = DecomposedLayer(**value)
    expect(isinstance(value, tuple) and len(value) == 2, where, value, "a method and a rank")
    method, rank = value
    rank = tuple(rank) if isinstance(rank, list) else rank  # JSON has no tuples
    expect(isinstance(method, str), f"{where} method", method, "a string")
    expect(is_rank(rank), f"{where} rank", rank, "a positive integer or two of them")
    return DecomposedLayer(method, rank)


def _check_history(where: str, provenance: Mapping[str, Any]) -> None:
    """Check the steps of a history that later steps are added to."""
    for step, value in provenance.items():
        if step in _STEPS:
            expect(isinstance(value, Mapping), f"{where}[{step!r}]", value, "a mapping")
            parts = {name: value[name] for name in ("layers", "skipped") if name in value}
            for name, part in parts.items():
                expect(isinstance(part, Mapping), f"{where}[{step!r}][{name!r}]", part, "a mapping")
            if step == "backbone":
                _check_history(f"{where}[{step!r}]", value)


def _names(where: str, value: Any) -> tuple[str, ...]:
    """Return names as a tuple, which JSON does not have."""
    expect(isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value), where, value, "names")
    distinct = len({*value, UNUSED}) == len(value) - value.count(UNUSED) + 1
    expect(distinct, where, list(value), "distinct names")
    return tuple(value)


def is_count(value: object) -> bool:
    """Tell whether ``value`` is a positive integer of at most 2^31 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def is_rank(value: object) -> bool:
    """Tell whether ``value`` is a rank: a positive integer or a pair of them."""
    return is_count(value) or (isinstance(value, tuple) and len(value) == 2 and all(is_count(v) for v in value))


def is_plain(value: object) -> bool:
    """Tell whether a value is a number, text, truth value, None, or a sequence or mapping by text of those."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(is_plain(inner) for inner in value)
    return value is None or isinstance(value, (bool, int, float, str))


def frozen(value: Any) -> Any:
    """Return a plain value with tuples for lists, also inside; JSON has lists only."""
    if isinstance(value, Mapping):
        return {key: frozen(inner) for key, inner in value.items()}
    return tuple(frozen(inner) for inner in value) if isinstance(value, (list, tuple)) else value
