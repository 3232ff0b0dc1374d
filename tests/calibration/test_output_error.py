"""A calibrated network is compared with the dense one on the calibration images."""

import copy
import json

import pytest
import torch
from conftest import Refused
from correlated import images, network
from torch import Tensor, nn

import norton_det as nd

ARCH = "resnet56_cifar"
RANKS = {"layer1.0.conv1": 1, "layer3.1.conv2": 2}


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@torch.no_grad()
def exploding() -> nn.Module:
    """Return a network whose calibration on images of zeros amplifies the error from block to block."""
    torch.manual_seed(0)
    net = nd.resnet56_cifar()
    for norm in [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return net.eval()


@pytest.mark.slow
def test_a_calibration_that_leads_away_from_the_dense_network_is_undone(caplog: pytest.LogCaptureFixture) -> None:
    dense, zeros = exploding(), torch.zeros(4, 3, 32, 32)
    plain, _ = nd.compress(dense, arch=ARCH, rank=1)
    net, spec = nd.compress(dense, arch=ARCH, rank=1, calibration=zeros)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in net.state_dict().items())
    step = spec.provenance["calibrate"]
    assert step["output_error"]["plain"] == pytest.approx(relative(plain(zeros), dense(zeros)), rel=1e-3)
    assert step["output_error"]["fitted"] is None or step["output_error"]["fitted"] > 1
    assert step["layers"] == {}
    assert all(reason.startswith("undone: ") for reason in step["skipped"].values())
    assert "calibration is undone: on its images the outputs differ from the dense network's by " in caplog.text
    json.dumps(spec.to_json(), allow_nan=False)


@pytest.mark.parametrize("count", [1, 20])
def test_both_errors_are_recorded(count: int, caplog: pytest.LogCaptureFixture) -> None:
    dense, spec = network(ARCH)
    sample = images(count)
    plain, _ = nd.decompose(dense, spec, RANKS)
    net, after = nd.decompose(dense, spec, RANKS, calibration=sample)
    some = sample[:16]
    expected = {name: relative(model(some), dense(some)) for name, model in (("plain", plain), ("fitted", net))}
    assert after.provenance["calibrate"]["output_error"] == pytest.approx(expected, rel=1e-3)
    assert expected["fitted"] < expected["plain"]
    assert "undone" not in caplog.text


@pytest.mark.parametrize("arch", [ARCH, "fasterrcnn_cpresnet50_fpn"])
def test_no_image_is_refused(arch: str, refused: Refused) -> None:
    none = torch.zeros(0, 3, 32, 32) if arch == ARCH else []
    ranks = {"conv1" if arch == ARCH else "backbone.body.layer1.0.conv2": 1}
    refused(lambda: nd.compress(None, arch=arch, rank=ranks, calibration=none), 2, "calibration has no image")


def test_nothing_to_correct_is_not_undone(caplog: pytest.LogCaptureFixture) -> None:
    dense, spec = network(ARCH)
    _, after = nd.decompose(dense, spec, {"layer1.0.conv1": 9}, calibration=images(2))
    assert max(after.provenance["calibrate"]["output_error"].values()) < 1e-6
    assert after.provenance["calibrate"]["layers"]
    assert "undone" not in caplog.text


def test_outputs_that_are_never_finite_are_refused(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    dense, spec = network(ARCH)
    before = copy.deepcopy(dense.state_dict())
    forward = type(dense).forward
    monkeypatch.setattr(type(dense), "forward", lambda self, x: forward(self, x) * float("inf"))
    message = "outputs on the calibration images are not finite, with calibration and without"
    refused(lambda: nd.decompose(dense, spec, RANKS, calibration=images(2)), 3, message)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
