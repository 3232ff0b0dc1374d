"""The metadata of a file: what is written is read, and what is no metadata of ours is refused."""

import json
from dataclasses import replace

import pytest
from conftest import Refused
from hypothesis import given, settings
from hypothesis import strategies as st

import norton_det as nd
from norton_det.export.contract import AXES, Contract

NAMES = st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True).map(tuple)
DETECTOR = Contract("detection", ("boxes", "labels", "scores", "masks"), (64, 80), AXES[1:])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["logits", "maps", "detection"]),
    NAMES,
    NAMES,
    st.tuples(st.integers(1, 999), st.integers(1, 999)),
    st.lists(st.sampled_from(AXES), unique=True).map(tuple),
    st.booleans(),
)
def test_what_is_written_is_read(
    kind: str,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    size: tuple[int, int],
    dynamic: tuple[str, ...],
    with_spec: bool,
) -> None:
    spec = nd.Spec("resnet56_cifar", 10, {"conv1": nd.DecomposedLayer("cp", 2)}) if with_spec else None
    contract = Contract(kind, outputs, size, dynamic, names, names[:1], {"mean": [0.5], "resize": 256}, spec, ("a, b",))
    metadata = contract.to_metadata()
    assert all(isinstance(text, str) for text in metadata.values())
    assert Contract.from_metadata({**metadata, "other": "of someone else"}, "x.onnx") == contract


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({}, ("x.onnx: has no metadata of norton_det", "norton-det export")),
        ({"norton-det.format": "7"}, ("x.onnx: format of the metadata is 7; expected 1", nd.__version__)),
        ({"norton-det.outputs": "["}, ("x.onnx: metadata cannot be read",)),
        ({"norton-det.kind": '"poem"'}, ("x.onnx: kind is 'poem'; expected detection, maps or logits",)),
        ({"norton-det.spec": "{}"}, ("x.onnx: ",)),
    ],
)
def test_wrong_metadata_is_refused(change: dict[str, str], parts: tuple[str, ...], refused: Refused) -> None:
    metadata = {**DETECTOR.to_metadata(), **change} if change else {"other": "x"}
    refused(lambda: Contract.from_metadata(metadata, "x.onnx"), 3, *parts)


def test_the_axes_of_a_graph() -> None:
    assert DETECTOR.shape == (1, 3, "height", "width")
    assert DETECTOR.dynamic_axes["images"] == {2: "height", 3: "width"}
    assert DETECTOR.dynamic_axes["boxes"] == {0: "objects"}
    assert DETECTOR.dynamic_axes["masks"] == {0: "objects", 2: "masks_height", 3: "masks_width"}
    maps = replace(DETECTOR, kind="maps", outputs=("0", "pool"), dynamic=AXES)
    assert [*maps.dynamic_axes] == ["images", "map_0", "pool"]
    assert maps.dynamic_axes["pool"] == {0: "batch", 2: "pool_height", 3: "pool_width"}
    still = replace(maps, dynamic=())
    assert still.shape == (1, 3, 64, 80)
    assert not any(still.dynamic_axes.values())
    assert json.loads(still.to_metadata()["norton-det.dynamic"]) == []
