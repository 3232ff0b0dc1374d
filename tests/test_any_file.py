"""Whatever a file says: it comes back equal, or is refused in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_network import small_architecture

import norton_det as nd
from norton_det.errors import DataError
from norton_det.models.tensor_files import SHA256_KEY, SPEC_KEY, read_file, sha256_of

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LAYER = st.one_of(
    st.tuples(st.just("cp"), st.integers(1, 3)),
    st.tuples(st.just("svd"), st.integers(1, 5)),
    st.tuples(st.just("tucker2"), st.tuples(*[st.integers(1, 3)] * 2)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[nd.Architecture]:
    with small_architecture() as architecture:
        yield architecture


@SETTINGS
@given(
    layers=st.dictionaries(st.sampled_from(["0", "3"]), LAYER, max_size=2),
    linear=st.none() | st.integers(1, 5),
    kept=st.none() | st.sets(st.integers(0, 5), min_size=3).map(sorted),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    attributes=st.fixed_dictionaries({}, optional={"1.eps": st.floats(2e-5, 1.0), "0.stride": st.just((2, 2))}),
    named=st.booleans(),
)
def test_networks_come_back(
    tmp_path: Path,
    layers: dict[str, Any],
    linear: int | None,
    kept: list[int] | None,
    dtype: torch.dtype,
    attributes: dict[str, Any],
    named: bool,
) -> None:
    methods = {name: nd.DecomposedLayer(*layer) for name, layer in layers.items()}
    methods |= {"10": nd.DecomposedLayer("svd", linear)} if linear else {}
    width = {} if kept is None else {"widths": {"first": len(kept)}, "kept": {"first": tuple(kept)}}
    classes = tuple("abcde") if named else ()
    spec = nd.Spec("small", 5, methods, **width, attributes=attributes, classes=classes)
    torch.manual_seed(0)
    net = nd.build(spec).to(dtype).eval()
    nd.save(net, spec, tmp_path / "net.safetensors")
    again, read = nd.load(tmp_path / "net.safetensors")
    assert read == spec
    for (name, tensor), (other, loaded) in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert tensor.dtype == loaded.dtype
        assert torch.equal(tensor, loaded)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net.float()(x), again.float()(x))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, small: nd.Architecture) -> Path:
    """A file with every field of a spec."""
    path = tmp_path_factory.mktemp("files") / "net.safetensors"
    layers = {"0": nd.DecomposedLayer("cp", 1), "3": nd.DecomposedLayer("tucker2", (1, 2))}
    widths = {"widths": {"first": 2}, "kept": {"first": (0, 5)}}
    spec = nd.Spec(small.name, 5, layers, **widths, attributes={"1.eps": 0.5}, classes=tuple("abcde"))
    nd.save(nd.build(spec), spec, path)
    return path


@SETTINGS
@given(data=st.data())
def test_changed_headers_are_read_or_refused_in_one_line(tmp_path: Path, written: Path, data: st.DataObject) -> None:
    with safe_open(written, "pt") as file:
        header = file.metadata()
    values = json.loads(header[SPEC_KEY])
    field = data.draw(st.sampled_from([*values, "more"]))
    place = values
    while isinstance(place.get(field), dict) and place[field] and data.draw(st.booleans()):  # also inside the field
        place = place[field]
        field = data.draw(st.sampled_from([*place]))
    place[field] = data.draw(JSON)
    header |= {SPEC_KEY: json.dumps(values)}
    tensors = load_file(written)
    header[SHA256_KEY] = sha256_of(tensors, header if data.draw(st.booleans()) else {})  # as version 3, or as older
    save_file(tensors, tmp_path / "net.safetensors", header)
    try:
        _, spec = nd.load(tmp_path / "net.safetensors")
    except DataError as error:
        assert str(error).startswith(f"{tmp_path / 'net.safetensors'}: ")  # noqa: PT017  both ends are right
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert spec.arch == "small"


@settings(SETTINGS, max_examples=30)
@given(data=st.data(), suffix=st.sampled_from([".safetensors", ".pth"]))
def test_a_flipped_bit_changes_nothing_or_is_refused(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    """Some bits mean nothing, as dates in an archive do."""
    net = nd.build(nd.Spec("small", 5)).eval()
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save({"model": net.state_dict(), "spec": nd.Spec("small", 5).to_json()}, path)
    else:
        nd.save(net, nd.Spec("small", 5), path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        again, spec = nd.load(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017  both ends are right
        return
    assert spec == nd.Spec("small", 5)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.ones(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_file(tmp_path / "x.pth")["x"], torch.ones(3))
