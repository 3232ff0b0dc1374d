"""What an exported file says about itself: inputs, outputs, preprocessing, names, and the spec of the network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from norton_det.errors import DataError, expect
from norton_det.models.detector_calls import DETECTION, LOGITS, MAPS
from norton_det.spec import Spec
from norton_det.version import __version__

INPUT = "images"
"""Name of the input: (N, 3, H, W), float32."""
AXES = ("batch", "height", "width")
"""Names of the input's axes that may be dynamic."""
_PREFIX, _MAP = "norton-det.", "map_"
_SPEC = f"{_PREFIX}spec"
_FORMAT = 1


@dataclass(frozen=True)
class Contract:
    """How an exported network is called, and what it is.

    Attributes:
        kind: what it returns: "logits", "maps" or "detection".
        outputs: names of the outputs, as the network has them.
        size: height and width of the images of the example.
        dynamic: which of ``AXES`` may differ from the example: (1, 3, *size).
        class_names: by label; empty: not known.
        keypoint_names: in order.
        preprocessing: what is done to an image before the network takes it, and what the network does itself.
        spec: of the network; None: it has none.
        changes: what was replaced for the export, in words.
    """

    kind: str
    outputs: tuple[str, ...]
    size: tuple[int, int]
    dynamic: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict, repr=False)
    spec: Spec | None = field(default=None, repr=False)
    changes: tuple[str, ...] = ()

    @property
    def is_detector(self) -> bool:
        """Whether it takes a list of images and returns the objects of each."""
        return self.kind == DETECTION

    @property
    def shape(self) -> tuple[int | str, ...]:
        """The shape of the input; dynamic axes by name."""
        sides = zip(AXES, (1, *self.size), strict=True)
        batch, height, width = (axis if axis in self.dynamic else side for axis, side in sides)
        return batch, 3, height, width

    @property
    def names(self) -> dict[str, str]:
        """The names of the outputs in a graph, which are no numbers, by the names that the network has."""
        return {name: _MAP + name if name.isdigit() else name for name in self.outputs}

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The names of the dynamic axes of input and outputs by number, for an exporter."""
        of_input = {i: name for i, name in ((0, "batch"), (2, "height"), (3, "width")) if name in self.dynamic}
        first = {0: "objects"} if self.is_detector else {i: name for i, name in of_input.items() if i == 0}
        further = {2: "height", 3: "width"} if self.kind == MAPS and 2 in of_input else {}
        outputs = {}
        for name, in_graph in self.names.items():
            axes = {2: "height", 3: "width"} if name == "masks" and 2 in of_input else further
            of_maps = {i: f"{in_graph}_{axis}" for i, axis in axes.items()}
            outputs[in_graph] = {**first, **of_maps}
        return {INPUT: of_input, **outputs}

    def to_metadata(self) -> dict[str, str]:
        """Return texts by key, for the metadata of any format of files."""
        values = {
            "kind": self.kind,
            "outputs": self.outputs,
            "size": self.size,
            "dynamic": self.dynamic,
            "class_names": self.class_names,
            "keypoint_names": self.keypoint_names,
            "preprocessing": dict(self.preprocessing),
            "changes": self.changes,
            "format": _FORMAT,
            "release": __version__,
        }
        texts = {_PREFIX + name: json.dumps(value) for name, value in values.items()}
        return texts if self.spec is None else {**texts, _SPEC: self.spec.to_json()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: object) -> "Contract":
        """Read what :meth:`to_metadata` wrote.

        Raises:
            DataError: the file was not written by this package, or by a newer release.
        """
        if _PREFIX + "format" not in metadata:
            raise DataError(f"{path}: has no metadata of norton_det; expected a file of norton-det export")
        try:
            version, release = (json.loads(metadata[_PREFIX + name]) for name in ("format", "release"))
            expected = f"{_FORMAT}; norton_det {release} wrote the file, this is {__version__}"
            expect(version == _FORMAT, "format of the metadata", version, expected)
            names = [name for name in cls.__dataclass_fields__ if _PREFIX + name in metadata]
            values = {name: json.loads(metadata[_PREFIX + name]) for name in names if name != "spec"}
            lists: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
            }
            spec = Spec.from_json(metadata[_SPEC]) if _SPEC in metadata else None
            contract = cls(spec=spec, **lists)
            expect(contract.kind in (DETECTION, MAPS, LOGITS), "kind", contract.kind, "detection, maps or logits")
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path}: metadata cannot be read: {type(error).__name__} {error}") from None
        return contract
