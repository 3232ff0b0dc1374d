"""Deployed networks in files."""

import copy
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
        ("{", "deployment is not JSON"),
        ('{"blocks": []}', "deployment lacks memory_format, folded, milliseconds"),
        (
            '{"blocks": [], "memory_format": "x", "folded": {}, "milliseconds": {}}',
            "memory_format is 'x'; expected",
        ),
        (
            '{"blocks": [], "memory_format": "contiguous", "folded": {"x": "y"}, "milliseconds": {"contiguous": 1}}',
            "norm 'x' cannot be folded into 'y'",
        ),
    ],
)
def test_a_damaged_deployment(text: str, message: str, tmp_path: Path) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    tensors = nd.build(spec).state_dict()
    metadata = {SPEC_KEY: spec.to_json(), DEPLOYMENT_KEY: text}
    save_file(tensors, tmp_path / "net.safetensors", {**metadata, SHA256_KEY: sha256_of(tensors, metadata)})
    with pytest.raises(DataError, match=re.escape(message)):
        nd.load(tmp_path / "net.safetensors")


def test_layers_that_were_not_replaced_are_written_as_they_are(
    deployed: tuple[nn.Module, nd.Spec, Path], tmp_path: Path
) -> None:
    fast, spec, _ = deployed
    with torch.no_grad():
        fast.linear.weight.normal_()  # as after a training of the head
    nd.save(fast, spec, tmp_path / "head.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(nd.load(tmp_path / "head.safetensors")[0](x), fast(x))


def test_replaced_layers_that_were_changed_are_refused(
    deployed: tuple[nn.Module, nd.Spec, Path], tmp_path: Path
) -> None:
    fast, spec, _ = deployed
    changed = copy.deepcopy(fast)
    name, weight = next((name, p) for name, p in changed.named_parameters() if name.startswith("layer1.0.conv1."))
    with torch.no_grad():
        weight.mul_(1.01)
    with pytest.raises(UsageError, match=rf"changed since norton_det.deploy: {name} has other values; make the"):
        nd.save(changed, spec, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"changed since norton_det.deploy: \S+ is torch.float16; a file would give"):
        nd.save(copy.deepcopy(fast).half(), spec, tmp_path / "x.safetensors")
    changed = copy.deepcopy(fast)
    changed.layer1[0].relu = nn.SiLU()
    with pytest.raises(UsageError, match=r"changed since norton_det.deploy: layer1.0.relu is SiLU; expected"):
        nd.save(changed, spec, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_half_network_is_deployed_saved_and_loaded(tmp_path: Path) -> None:
    spec = spec_from_configuration("resnet56_cifar", 2, "[0.5]*57")
    x = torch.randn(1, 3, 32, 32).bfloat16()
    net = with_statistics(nd.build(spec)).bfloat16()
    fast = deploy(net, x, repeats=1)
    nd.save(fast, spec, tmp_path / "half.safetensors")
    again, _ = nd.load(tmp_path / "half.safetensors")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(again(x), fast(x))


def test_training_mode_says_what_it_means(
    deployed: tuple[nn.Module, nd.Spec, Path], caplog: pytest.LogCaptureFixture
) -> None:
    fast = copy.deepcopy(deployed[0])
    assert fast.eval() is fast
    assert not caplog.text
    assert fast.train().training
    assert "train(): the network is deployed, for inference only" in caplog.text


def test_hooks_and_added_tensors_of_a_deployed_network_are_refused(
    deployed: tuple[nn.Module, nd.Spec, Path], tmp_path: Path
) -> None:
    fast, spec, _ = deployed
    hooked = copy.deepcopy(fast)
    hooked.register_forward_pre_hook(lambda module, args: (args[0] * 4 - 2,))
    with pytest.raises(UsageError, match=r"has hooks \(at the network\), which no file can hold"):
        nd.save(hooked, spec, tmp_path / "x.safetensors")
    more = copy.deepcopy(fast)
    more.register_buffer("more", torch.ones(1))
    with pytest.raises(UsageError, match=r"more was added or removed; make the change before norton_det\.deploy"):
        nd.save(more, spec, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="model is deployed"):
        deploy(fast, torch.randn(1, 3, 32, 32), repeats=1)
