"""Layers beside the channel plan that are decomposed by name: calibrated, or refused before the work begins."""

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.compression import decompose as step
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES

ARCH = "fasterrcnn_cpresnet50_fpn"
FPN = "backbone.fpn.layer_blocks.0.0"


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 64, generator=generator) for _ in range(3)]


def test_a_convolution_of_the_pyramid_is_calibrated(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net, spec = nd.prune(*make_detector(ARCH, **TINY), "[0.9]*60", criterion="norm", scope="detector")  # narrow: quick
    plain, _ = nd.decompose(net, spec, {FPN: 2})
    calibrated, after = nd.decompose(net, spec, {FPN: 2}, calibration=images)
    report = after.provenance["calibrate"]["layers"][FPN]
    assert report["fitted"] < report["plain"]

    def error(other: torch.nn.Module) -> float:
        batch = net.transform(images)[0].tensors
        with torch.no_grad():
            wanted, got = (model.eval().backbone(batch)["0"] for model in (net, other))
        return float((wanted - got).square().mean())

    assert error(calibrated) < error(plain)


def test_what_cannot_be_calibrated_is_refused_before_the_work(
    images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, spec = make_detector(ARCH, **TINY)
    monkeypatch.setattr(type(ARCHITECTURES[ARCH].task), "runs_in_parts", lambda *_: False)
    monkeypatch.setattr(step, "_fit_report", lambda *args: pytest.fail("decomposed"))
    name = "rpn.head.conv.0.0"
    with pytest.raises(UsageError, match=rf"layer '{name}' of {ARCH} cannot be calibrated; .* without calibration"):
        nd.compress(net, arch=spec, rank={name: 1}, calibration=images)


class Twice(nn.Module):
    """A network with a convolution that runs twice."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.again(self.again(self.conv(x))).mean((2, 3)))


def test_a_layer_that_runs_on_its_own_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    plan = nd.ChannelPlan({"stem": 8}, (nd.Layer("conv", (), "stem"), nd.Layer("again", ("stem",)), nd.Layer("fc", ())))
    nd.register_architecture(nd.Architecture("twice", Twice, plan, (), 10, 32, "fc", "cifar10"))
    with pytest.raises(
        UsageError, match="layer 'again' runs 2 times in one pass, on inputs that depend on its own outp"
    ):
        nd.decompose(Twice(10), "twice", 1, calibration=torch.rand(2, 3, 32, 32))


def test_what_was_decomposed_before_stays_and_is_listed(images: list[Tensor]) -> None:
    net, spec = nd.prune(*make_detector(ARCH, **TINY), "[0.9]*60", criterion="norm", scope="detector")
    net, spec = nd.decompose(net, spec, {"rpn.head.conv.0.0": 1})
    narrower, spec = nd.prune(net, spec, "[0.]+[0.5]*19", criterion="norm", calibration=images)
    step = spec.provenance["calibrate"]
    assert step["skipped"] == {"rpn.head.conv.0.0": "not calibrated, and decomposed before"}
    assert "rpn.head.conv.0.0" not in step["layers"]
    before, after = (model.get_submodule("rpn.head.conv.0.0").state_dict() for model in (net, narrower))
    assert all(torch.equal(before[name], after[name]) for name in before)
