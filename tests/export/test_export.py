"""Exported files: every format returns what the network returns, or there is no file."""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import Refused
from exported_networks import small
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det as nd
from norton_det.export.formats import FORMATS
from norton_det.export.onnx_graph import without_warnings
from norton_det.export.preprocessing import preprocessing_of

SUFFIX = {name: FORMATS[name].suffix for name in FORMATS}
LIMIT = {"rtol": 1e-4, "atol": 1e-5}


def exported(net: nn.Module, folder: Path, format: str = "onnx", **options: Any) -> tuple[Any, Any]:
    """Export a network; return the report, and the file as what is called."""
    path = folder / f"net{SUFFIX[format]}"
    done = nd.export_network(net, path, format=format, **{"image_size": (32, 40), **options})
    assert done.path == path
    assert [file.name for file in folder.iterdir()] == [path.name], "no temporary file stays"
    return done, FORMATS[format].read(str(path))


def metadata_of(path: Path, format: str) -> dict[str, str]:
    if format == "onnx":
        return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    with zipfile.ZipFile(path) as file:
        entries = {name.rpartition("/")[2]: file.read(name).decode() for name in file.namelist() if "/extra/" in name}
    return {name: text for name, text in entries.items() if name.startswith("norton-det.")}


SLOW = [pytest.param("torch.export", marks=pytest.mark.slow)]


@pytest.mark.parametrize("format", ["onnx", "torchscript", *SLOW])
def test_a_file_returns_what_the_network_returns(format: str, tmp_path: Path) -> None:
    net = small()
    done, run = exported(net, tmp_path, format, class_names=["cat", "dög"])
    assert done.contract.dynamic == ("batch", "height", "width")
    assert done.contract.changes == ("1 batch norms are folded",)
    assert done.check.differences.images == 3 + 2 + 3
    for shape in ((1, 3, 32, 40), (4, 3, 24, 24), (2, 3, 61, 33)):
        images = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(images), net(images), **LIMIT)
    metadata = metadata_of(done.path, format)
    assert json.loads(metadata["norton-det.class_names"]) == ["cat", "dög"]
    assert metadata == done.contract.to_metadata()


@pytest.mark.parametrize("fold", [True, False])
def test_norms_are_folded_unless_they_are_to_be_kept(fold: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()]
    done, _ = exported(with_statistics(nn.Sequential(*layers)), tmp_path, fold=fold)
    assert not done.contract.changes
    nodes = [node.op_type for node in onnx.load(str(done.path)).graph.node]
    assert nodes.count("BatchNormalization") == 1, "what follows an activation stays"
    after = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU())
    (tmp_path / "net.onnx").unlink()
    done, _ = exported(with_statistics(after), tmp_path, fold=fold)
    nodes = [node.op_type for node in onnx.load(str(done.path)).graph.node]
    assert nodes == ["Conv", "Relu"] if fold else {"Mul", "Add"} < set(nodes)


class Flattened(nn.Sequential):
    """Takes images of one size only, and returns maps by name."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2, 8, 8), nn.Flatten(), nn.Linear(2 * 4 * 5, 3))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"0": super().forward(input), "further": input.mean((2, 3))}


@pytest.mark.parametrize("format", ["onnx", *SLOW])
def test_axes_that_a_network_fixes_stay_fixed(format: str, tmp_path: Path, refused: Refused) -> None:
    net = Flattened().eval()
    done, run = exported(net, tmp_path, format)
    assert done.contract.dynamic == ("batch",)
    assert done.contract.outputs == ("0", "further")
    images = torch.rand(3, 3, 32, 40)
    with torch.no_grad():
        for name, values in net(images).items():
            torch.testing.assert_close(run(images)[name], values, **LIMIT)
    if format == "onnx":
        refused(lambda: run(torch.rand(1, 3, 40, 32)), 2, "images are (1, 3, 40, 32); expected (batch, 3, 32, 40)")


def test_a_static_file_has_no_free_axis(tmp_path: Path, refused: Refused) -> None:
    done, run = exported(small(), tmp_path, dynamic=False)
    assert done.contract.dynamic == ()
    assert done.contract.shape == (1, 3, 32, 40)
    assert run(torch.rand(3, 3, 32, 40)).shape == (3, 2), "one by one"
    refused(lambda: run(torch.rand(1, 3, 32, 41)), 2, "expected (1, 3, 32, 40), for which the file was written")


# Nothing is written that is not right.


def scaled(write: Callable[..., None], factor: float) -> Callable[..., None]:
    def written(net: Any, *arguments: Any) -> None:
        net[5].weight.data.mul_(factor)
        write(net, *arguments)

    return written


OTHERS = [pytest.param(format, marks=pytest.mark.slow) for format in FORMATS if format != "onnx"]


@pytest.mark.parametrize("format", ["onnx", *OTHERS])
@pytest.mark.parametrize(("factor", "fine"), [(1 + 1e-6, True), (1.01, False), (float("nan"), False)])
def test_a_file_that_differs_is_not_kept(
    format: str, factor: float, fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    right = FORMATS[format]
    monkeypatch.setitem(FORMATS._items, format, right._replace(write=scaled(right.write, factor)))
    path = tmp_path / f"net{right.suffix}"

    def run() -> Any:
        return nd.export_network(small(), path, format=format, image_size=(32, 32))

    if fine:
        run()
        assert path.is_file()
        return
    refused(run, 2, f"the {right.title} file does not return what model returns: outputs differ by", unwritten=tmp_path)
    path.write_bytes(b"older")
    refused(run, 2, "outputs differ by")
    assert path.read_bytes() == b"older"


def test_a_file_that_does_not_run_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def fails(images: Tensor) -> Tensor:
        raise RuntimeError("no memory\nin detail")

    monkeypatch.setitem(FORMATS._items, "onnx", FORMATS["onnx"]._replace(read=lambda path: fails))
    run = lambda: nd.export_network(small(), tmp_path / "net.onnx", image_size=(32, 32))  # noqa: E731
    refused(run, 2, "the file does not run on images [(3, 32, 32)]: RuntimeError: no memory", unwritten=tmp_path)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return str(images.sum().item())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"format": "onyx"}, ("unknown format 'onyx'; expected one of: onnx, torch.export, torchscript",)),
        ({"format": "torch.export"}, ("net.onnx: expected a name that ends with .pt2",)),
        ({"implementation": "fastest"}, ("unknown implementation 'fastest'; expected one of: auto, factored",)),
        ({"check_images": []}, ("check_images is empty",)),
        ({"check_images": [torch.zeros(1, 3, 8, 8)]}, ("an image of check_images is (1, 3, 8, 8)",)),
        ({"check_images": ["a.png"]}, ("an image of check_images is str",)),
        ({"image_size": (2, 2)}, ("model does not run on an image (3, 2, 2): RuntimeError",)),
        ({"net": Branching()}, ("model returns a str; expected a tensor",)),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], parts: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    named = {"net": small(), "path": tmp_path / "net.onnx", "image_size": (32, 32), **options}
    refused(lambda: nd.export_network(**named), 2, *parts, unwritten=tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    parts = (f"ONNX files need {package}: pip install norton-det[export]",)
    run = lambda: nd.export_network(small(), tmp_path / "net.onnx", image_size=(32, 32))  # noqa: E731
    refused(run, 2, *parts, unwritten=tmp_path)
    refused(lambda: nd.load_onnx(tmp_path / "net.onnx"), 2, *parts)


def test_files_that_are_not_ours_are_refused(tmp_path: Path, refused: Refused) -> None:
    refused(lambda: nd.load_onnx(tmp_path / "net.onnx"), 3, "net.onnx: no such file; expected one of norton-det export")
    (tmp_path / "text.onnx").write_text("no graph")
    refused(lambda: nd.load_onnx(tmp_path / "text.onnx"), 3, "text.onnx: cannot be read as ONNX")
    content: Any = io.BytesIO()
    with without_warnings():
        torch.onnx.export(small(), (torch.rand(1, 3, 32, 32),), content, dynamo=False)
    (tmp_path / "other.onnx").write_bytes(content.getvalue())
    refused(lambda: nd.load_onnx(tmp_path / "other.onnx"), 3, "other.onnx: has no metadata of norton_det")
    refused(lambda: nd.load_onnx(tmp_path / "text.onnx", providers=["Abacus"]), 2, "provider 'Abacus' is not available")


def test_a_network_that_was_read_is_called_as_the_other(tmp_path: Path, refused: Refused) -> None:
    _, run = exported(small(), tmp_path, class_names=["a", "b"])
    images = torch.rand(2, 3, 32, 40)
    assert not run.training
    assert torch.equal(run(images), run.cpu()(images.double()))
    assert (run.class_names, run.keypoint_names, run.spec, run.kinds) == (("a", "b"), (), None, ())
    assert run.preprocessing == preprocessing_of(small(), None)
    refused(lambda: run([torch.rand(3, 32, 40)]), 2, "images is a list; expected a tensor (N, 3, H, W)")
    refused(lambda: nd.load_detector(tmp_path / "net.onnx"), 2, "net.onnx: returns logits; expected a detector")


def test_the_given_network_stays_as_it_is(tmp_path: Path) -> None:
    net = small().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    exported(net, tmp_path)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    net = small().bfloat16()
    done, run = exported(net, tmp_path)
    images = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(run(images), net.float()(images), **LIMIT)
    assert "bfloat16 parameters are float32" in done.contract.changes


@pytest.mark.parametrize("format", ["onnx", "torchscript", *SLOW])
def test_what_is_deployed_in_bfloat16_is_exported_in_float32(format: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 40)
    fast = nd.deploy(small(), images, repeats=1, dtype=torch.bfloat16)
    done, run = exported(fast, tmp_path, format)
    assert "bfloat16 parameters are float32" in done.contract.changes
    with torch.no_grad():
        torch.testing.assert_close(run(images), fast(images), rtol=0.02, atol=0.02)
