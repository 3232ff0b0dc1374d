"""Deployed networks in files."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Refused, tool
from safetensors.torch import save_file
from statistics_of_norms import with_statistics
from torch import nn

import norton_det as nd
from norton_det.decompositions import CPConv2d
from norton_det.deployment.deploy import deploy
from norton_det.errors import DataError, UsageError
from norton_det.models.tensor_files import DEPLOYMENT_KEY, SHA256_KEY, SPEC_KEY, sha256_of
from norton_det.structure.settings import spec_from_configuration


@pytest.fixture
def deployed(tmp_path: Path) -> tuple[nn.Module, nd.Spec, Path]:
    """A deployed network of two implementations, and its file."""
    spec = spec_from_configuration("resnet56_cifar", 2, "[0.5]*57")
    fast = deploy(with_statistics(nd.build(spec)), torch.randn(1, 3, 32, 32), repeats=1)
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    return fast, spec, tmp_path / "fast.safetensors"


def test_a_deployed_network_is_saved_and_loaded(deployed: tuple[nn.Module, nd.Spec, Path]) -> None:
    fast, spec, path = deployed
    again, read = nd.load(path)
    assert read == spec
    assert again.deployment == fast.deployment
    assert [type(module) for module in again.modules()] == [type(module) for module in fast.modules()]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), fast(x))
        nd.save(again, read, path)  # what was loaded can be saved again
        assert torch.equal(nd.load(path)[0](x), fast(x))
        measured, _ = nd.load(path, redeploy=torch.randn(1, 3, 32, 32))
        torch.testing.assert_close(measured(x), fast(x), rtol=1e-4, atol=1e-4)
    assert measured.deployment.folded == fast.deployment.folded
    assert measured.deployment.milliseconds != fast.deployment.milliseconds
    assert not any(isinstance(module, CPConv2d) for module in measured.modules())


def test_any_file_is_deployed_when_loaded(tmp_path: Path) -> None:
    spec = spec_from_configuration("resnet56_cifar", 1, "[0.8]*57")
    nd.save(nd.build(spec), spec, tmp_path / "net.safetensors")
    fast, _ = nd.load(tmp_path / "net.safetensors", redeploy=torch.randn(1, 3, 32, 32))
    assert len(fast.deployment.folded) == 55


def test_a_deployed_network_is_neither_trained_nor_compressed(
    deployed: tuple[nn.Module, nd.Spec, Path], classes: Path, tmp_path: Path, refused: Refused
) -> None:
    fast, spec, path = deployed
    with pytest.raises(UsageError, match="model is deployed, for inference only"):
        nd.prune(fast, spec, "[0.5]*57")
    train = ["--data-path", str(classes), "--device", "cpu", "--output-dir", str(tmp_path), "--weights", str(path)]
    output = str(tmp_path / "x.safetensors")
    compress = ["--arch", "resnet56_cifar", "--rank", "1", "--output", output, "--weights", str(path)]
    for name, words in (("train_cls", train), ("compress", compress)):
        refused(partial(tool(name).main, words), 3, f"{path}: is deployed, for inference only")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "deployment cannot be read: JSONDecodeError"),
        ('{"blocks": []}', "deployment cannot be read: TypeError"),
        (
            '{"blocks": [], "memory_format": "x", "folded": {}, "milliseconds": {}}',
            "memory_format 'x'; expected",
        ),
        (
            '{"blocks": [], "memory_format": "contiguous", "folded": {"x": "y"}, "milliseconds": {}}',
            "norm 'x' cannot be folded into 'y'",
        ),
    ],
)
def test_a_damaged_deployment(text: str, message: str, tmp_path: Path) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    tensors = nd.build(spec).state_dict()
    metadata = {SPEC_KEY: spec.to_json(), DEPLOYMENT_KEY: text, SHA256_KEY: sha256_of(tensors)}
    save_file(tensors, tmp_path / "net.safetensors", metadata)
    with pytest.raises(DataError, match=re.escape(message)):
        nd.load(tmp_path / "net.safetensors")
