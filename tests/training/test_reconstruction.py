"""Reconstruction: it comes nearer to the dense network, repeats exactly, leaves its arguments alone; the tools."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Refused, tool
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.data.calibration_set import read_calibration_set
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.training.reconstruction import reconstruct, vary

ARCH = "vgg16_bn_cifar"


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Noise about grey levels."""
    noise = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return 0.3 * noise + torch.linspace(-2, 2, 24).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def dense(images: Tensor) -> nn.Module:
    """A narrow network whose statistics are those of the images, as if it had been trained on them."""
    torch.manual_seed(0)
    net, _ = nd.prune(ARCHITECTURES[ARCH].build(3), ARCH, "[0.9]*13")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
        net.classifier[-1].weight.mul_(30)
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def test_the_network_comes_nearer_and_repeats_exactly(dense: nn.Module, images: Tensor) -> None:
    net, spec = nd.decompose(dense, ARCH, 1)
    before = [copy.deepcopy(module.state_dict()) for module in (net, dense)]
    state = torch.get_rng_state()
    trained, found = reconstruct(net, spec, dense, images, epochs=10, batch_size=8)
    step = found.provenance["reconstruct"]
    assert step["-> distance"] < step["distance"]
    assert (found, step["images"], step["epochs"]) == (spec, 24, 10)
    assert not trained.training
    assert torch.equal(torch.get_rng_state(), state)
    for module, values in zip((net, dense), before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in dense.parameters())
    statistics = [name for name in before[0] if name.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(trained.state_dict()[name], before[0][name]) for name in statistics)
    assert {module.implementation for module in trained.modules() if isinstance(module, nd.CPConv2d)} == {"factored"}
    again, _ = reconstruct(net, spec, dense, images, epochs=10, batch_size=8)
    other = again.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in trained.state_dict().items())


def test_what_is_dense_already_stays(dense: nn.Module, images: Tensor) -> None:
    spec = nd.prune(dense, ARCH, "[0.]*13")[1]
    trained, found = reconstruct(dense, spec, dense, images, epochs=1, batch_size=500)
    assert found.provenance["reconstruct"]["-> distance"] == found.provenance["reconstruct"]["distance"]
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in trained.state_dict().items())


def test_pruned_and_mixed_precision(dense: nn.Module, images: Tensor, tmp_path: Path) -> None:
    net, spec = nd.compress(dense, arch=nd.prune(dense, ARCH, "[0.]*13")[1], rank=1, rates="[0.4]*13")
    trained, spec = reconstruct(net, spec, dense, images, epochs=1, batch_size=8, amp=True)
    nd.save(trained, spec, tmp_path / "net.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
    torch.testing.assert_close(nd.load(tmp_path / "net.safetensors")[0](images), trained(images))


def test_a_detector_by_its_features() -> None:
    detector, spec = make_detector("fasterrcnn_cpresnet50_fpn", **TINY, num_classes=3)
    net, spec = nd.compress(detector, arch=spec, rank=1, rates="[0.5]*20")
    images = [torch.rand(3, 64, size) for size in (64, 48, 64)]
    trained, found = reconstruct(net, spec, detector, images, epochs=1, batch_size=3)
    assert found.provenance["reconstruct"]["images"] == 3
    heads = net.roi_heads.state_dict()
    assert all(torch.equal(value, heads[name]) for name, value in trained.roi_heads.state_dict().items())


def test_variation() -> None:
    image = torch.rand(3, 16, 24) + 1
    assert torch.equal(vary(image, 0.7, 0.5, 0.5), image)
    assert torch.equal(vary(image, 0.2, 0.5, 0.5), image.flip(-1))
    shifted = vary(image, 1.0, 1.0, 0.0)  # two rows down, three columns to the left
    assert torch.equal(shifted[:, 2:, :-3], image[:, :-2, 3:])
    assert not shifted[:, :2].any()
    assert not shifted[:, :, -3:].any()


@pytest.mark.parametrize(
    ("wrong", "name"), [({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch_size"), ({}, "images")]
)
def test_bad_input(wrong: dict[str, int], name: str, dense: nn.Module, images: Tensor) -> None:
    spec = nd.prune(dense, ARCH, "[0.]*13")[1]
    with pytest.raises(UsageError, match=f"reconstruction: {name} is 0; expected at least 1"):
        reconstruct(dense, spec, dense, images if wrong else images[:0], **wrong)
    with pytest.raises(UsageError, match="does not fit the network"):
        reconstruct(nd.decompose(dense, ARCH, 1)[0], spec, dense, images)


def test_images_that_are_held_out_are_not_drawn(classes: Path) -> None:
    everything = read_calibration_set(classes, "resnet56_cifar", 100)
    assert len(everything) == 24
    assert torch.equal(read_calibration_set(classes, "resnet56_cifar", 5), everything[:5]), "more begin with the same"
    left = read_calibration_set(classes, "resnet56_cifar", 100, holdout=6)
    assert len(left) == 18
    seen = {tuple(image.flatten()[:50].tolist()) for image in left}
    assert len(seen) == 18
    assert seen < {tuple(image.flatten()[:50].tolist()) for image in everything}


def test_tools(classes: Path, tmp_path: Path, refused: Refused) -> None:
    net = nd.build(nd.Spec(ARCH, 3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    common = ["--arch", ARCH, "--weights", str(tmp_path / "net.pt"), "--calibration-images", "2", "--batch-size", "8"]
    words = [*common, "--rates", "[0.95]*13", "--reconstruct", "1", "--reconstruct-images", "16", "--amp"]
    words += ["--output", str(tmp_path / "x.safetensors")]
    assert tool("compress").main([*words, "--calibrate", str(classes)]) == 0
    provenance = nd.load(tmp_path / "x.safetensors")[1].provenance
    assert provenance["calibrate"]["images"] == 2
    assert provenance["reconstruct"]["images"] == 16
    refused(lambda: tool("compress").main(words), 2, "--reconstruct without --calibrate")
    words = [*common, "--data-path", str(classes), "--settings", "0:[0.95]*13", "--reconstruct", "1", "--holdout", "8"]
    assert tool("accuracy").main([*words, "--json", str(tmp_path / "rows.json")]) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["images"] == 8
    assert content["unlabelled"] == 16
    assert {"plain", "calibrated", "reconstructed", "reconstructed_seconds"} < content["rows"][1].keys()
