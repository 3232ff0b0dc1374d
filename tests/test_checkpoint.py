"""Files: every format version is read, and what is damaged or newer is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from golden.make import outputs_of
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import norton_det as nd
from norton_det.checkpoint import has_spec, read_spec
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.state_dicts import read_state_dict
from norton_det.models.tensor_files import SHA256_KEY, SPEC_KEY, sha256_of, write_file
from norton_det.spec import VERSION, DecomposedLayer

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(file for file in GOLDEN.glob("version*/*") if file.suffix in (".safetensors", ".pth"))


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, header: dict[str, str]) -> None:
    save_file(load_file(path), path, header)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the present version."""
    net, spec = nd.compress(None, arch="vgg16_bn_cifar", rates="[0.9]*7+[0.98]*6", criterion="norm")
    nd.save(net, spec, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_every_version_is_there() -> None:
    assert {file.parent.name for file in FILES} == {f"version{version}" for version in range(VERSION + 1)}
    assert len(FILES) == 4 * (VERSION + 1) + (VERSION - 1), "a whole detector since version 2"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_golden_files_give_the_outputs_that_they_gave(path: Path) -> None:
    expected = json.loads((path.parent / "outputs.json").read_text())[path.name]
    net, spec = nd.load(path)
    torch.testing.assert_close(outputs_of(net), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert spec.num_classes == 3
    assert read_spec(path, deployed=True) == spec


def test_what_golden_files_say_is_kept() -> None:
    assert set(nd.load(GOLDEN / "version0" / "tucker2.safetensors")[1].decompositions.values()) == {
        DecomposedLayer("tucker2", (2, 3))
    }
    mixed = nd.load(GOLDEN / "version1" / "mixed.safetensors")[1].decompositions
    assert mixed["features.0"] == DecomposedLayer("cp", 2)
    assert mixed["features.3"] == DecomposedLayer("tucker2", (2, 3))
    whole = nd.load(GOLDEN / "version2" / "detector.safetensors")[1]
    assert whole.widths == {group: 5 if group == "fpn" else 4 for group in ARCHITECTURES[whole.arch].plan.widths}
    for name in ("cp.safetensors", "checkpoint.pth", "deployed.safetensors"):
        assert [nd.load(GOLDEN / f"version{n}" / name)[1].classes for n in (0, 1, 2, 3)] == [
            (),
            (),
            *[("cat", "dog", "cow")] * 2,
        ]


def test_a_newer_version_is_refused_with_what_it_needs(file: Path) -> None:
    header = header_of(file)
    spec = json.loads(header[SPEC_KEY])
    assert spec["version"] == VERSION
    header[SPEC_KEY] = json.dumps({**spec, "version": VERSION + 1, "norton_det": "9.9", "unheard": "of"})
    rewrite(file, header)
    message = (
        rf"net\.safetensors: format version {VERSION + 1}, written by norton_det 9\.9; .*install norton_det 9\.9 or"
    )
    assert has_spec(file)
    for read in (nd.load, read_spec, read_state_dict):
        with pytest.raises(DataError, match=message):
            read(file)


def test_changed_tensors_are_refused(file: Path) -> None:
    header = header_of(file)
    tensors = load_file(file)
    assert header[SHA256_KEY] == sha256_of(tensors, header)
    tensors["features.0.weight"][0, 0, 0, 0] += 1
    save_file(tensors, file, header)
    for read in (nd.load, lambda path: nd.vgg16_bn_cifar(weights=path), read_state_dict):
        with pytest.raises(DataError, match=r"net\.safetensors: damaged: the SHA-256 of its content is .*; the header"):
            read(file)


def test_a_checksum_that_was_removed_is_missed(file: Path) -> None:
    header = header_of(file)
    del header[SHA256_KEY]
    rewrite(file, header)
    with pytest.raises(DataError, match="the header says None"):
        nd.load(file)


def test_sha256_tells_names_types_and_shapes_apart() -> None:
    zeros = torch.zeros(4)
    different = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}, {"a": zeros.bfloat16()}, {}]
    assert len({sha256_of(tensors) for tensors in different}) == len(different)
    transposed = torch.arange(6.0).view(2, 3).mT
    assert sha256_of({"a": transposed}) == sha256_of({"a": transposed.contiguous()})
    assert sha256_of({"a": zeros, "b": zeros + 1}) == sha256_of({"b": zeros + 1, "a": zeros})
    assert len(sha256_of({"a": torch.tensor(3)})) == 64


def test_wrappers_are_taken_off_and_shared_tensors_refused(tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch="resnet56_cifar", rank=1)
    nd.save(nn.DataParallel(net), spec, tmp_path / "net.safetensors")
    assert nd.load(tmp_path / "net.safetensors")[1] == spec
    net.layer1[1].bn1.weight = net.layer1[0].bn1.weight
    with pytest.raises(UsageError, match=r"'layer1\.0\.bn1\.weight' and 'layer1\.1\.bn1\.weight' are one tensor"):
        nd.save(net, spec, tmp_path / "net.safetensors")


def test_what_safetensors_says_of_storage_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("norton_det.models.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_file(tmp_path / "x.safetensors", {"x": torch.ones(1)}, {})
    assert (raised.value.errno, raised.value.filename) == (28, str(tmp_path / "x.safetensors"))
    assert list(tmp_path.iterdir()) == []
