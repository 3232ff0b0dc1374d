"""Layers beside the channel plan that are decomposed by name: calibrated, or refused before the work begins."""

import pytest
import torch
from conftest import TINY
from torch import Tensor

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.compression import decompose as step
from norton_det.errors import UsageError

ARCH = "fasterrcnn_cpresnet50_fpn"
FPN = "backbone.fpn.layer_blocks.0.0"


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 64, generator=generator) for _ in range(3)]


def test_a_convolution_of_the_pyramid_is_calibrated(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net, spec = nd.prune(*make_detector(ARCH, **TINY), "[0.9]*20", criterion="norm")  # narrow: quick
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


@pytest.mark.parametrize("name", ["rpn.head.conv.0.0"])
def test_what_cannot_be_calibrated_is_refused_before_the_work(
    name: str, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, spec = make_detector(ARCH, **TINY)
    monkeypatch.setattr(step, "_fit_report", lambda *args: pytest.fail("decomposed"))
    with pytest.raises(UsageError, match=rf"layer '{name}' of {ARCH} cannot be calibrated; .* without calibration"):
        nd.compress(net, arch=spec, rank={name: 1}, calibration=images)
