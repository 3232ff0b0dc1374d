"""Calibration of whole detectors: pyramid, RPN and heads, on boxes that the dense detector proposes and finds."""

from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.calibration.layer_fit import Fit
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn_regions import OBJECTS, PROPOSALS

FASTER, MASK, KEYPOINT = (f"{kind}rcnn_cpresnet50_fpn" for kind in ("faster", "mask", "keypoint"))
OUTPUTS = {"features", "rpn_logits", "rpn_deltas", "class_logits", "box_deltas"}
RANKS: dict[str, Any] = {
    "backbone.fpn.layer_blocks.0.0": 4,
    "rpn.head.conv.0.0": 4,
    "roi_heads.box_head.fc6": 6,
    "roi_heads.box_head.fc7": 6,
}
METHODS = {name: "svd" if ".fc" in name else "tucker2" for name in RANKS}


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, width, generator=generator) for width in (64, 48, 64, 64)]


def narrow(arch: str) -> tuple[nn.Module, nd.Spec]:
    """Return a narrow detector with random weights."""
    torch.manual_seed(0)
    net, spec = make_detector(arch, num_classes=3, **TINY)
    return nd.prune(net, spec, "[0.9]*60", criterion="random", scope="detector")


def step(spec: nd.Spec) -> Any:
    return spec.provenance["calibrate"]


@pytest.mark.parametrize(
    ("arch", "further"),
    [
        (FASTER, set()),
        pytest.param(MASK, {"mask_logits"}, marks=pytest.mark.slow),
        pytest.param(KEYPOINT, {"keypoint_logits"}, marks=pytest.mark.slow),
        pytest.param(f"{MASK}_v2", {"mask_logits"}, marks=pytest.mark.slow),
    ],
)
def test_every_output_comes_nearer(arch: str, further: set[str], images: list[Tensor]) -> None:
    dense, spec = narrow(arch)
    rates = "[0.3]*60"
    ranks = {name: rank for name, rank in RANKS.items() if name in dict(dense.named_modules())}
    methods = {name: METHODS[name] for name in ranks}
    options: dict[str, Any] = {"rank": ranks, "decomposition": methods, "rates": rates, "scope": "detector"}
    net, after = nd.compress(dense, arch=spec, criterion="norm", **options, calibration=images)
    errors = step(after)["output_error"]
    assert set(errors["outputs"]) == OUTPUTS | further
    assert errors["fitted"] < errors["plain"]
    for name, error in errors["outputs"].items():
        assert error["fitted"] < error["plain"], name
    fits = step(after)["layers"]
    assert all(fit["fitted"] <= fit["plain"] + 1e-9 for fit in fits.values())
    weighted = {name for name, module in dense.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert weighted - set(fits) == set(), "every layer is refitted"
    if arch == FASTER:
        return
    again, _ = nd.compress(dense, arch=spec, criterion="norm", **options, calibration=images)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


@pytest.mark.slow
def test_a_layer_behind_the_backbone_makes_all_of_it_calibrated(images: list[Tensor]) -> None:
    dense, spec = narrow(FASTER)
    net, after = nd.decompose(dense, spec, {"roi_heads.box_head.fc6": 2}, method="svd", calibration=images)
    errors = step(after)["output_error"]["outputs"]
    assert errors["class_logits"]["fitted"] < errors["class_logits"]["plain"]
    assert max(errors["features"].values()) < 1e-5, "nothing to correct"
    assert after.decompositions["roi_heads.box_head.fc6"].rank == net.roi_heads.box_head.fc6.rank == 2


@pytest.mark.slow
def test_laterals_make_up_for_what_the_pyramid_lacks(images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, spec = narrow(FASTER)
    errors = []
    for sums in (True, False):
        if not sums:
            monkeypatch.setattr(Fit, "_and_missing", lambda self, layer, target: target)
        _, after = nd.prune(dense, spec, "[0.]*3+[0.5]*40", criterion="norm", calibration=images)
        errors.append(step(after)["output_error"]["fitted"])
    assert errors[0] < errors[1]


@pytest.mark.parametrize("arch", [FASTER, KEYPOINT])
def test_regions(arch: str, images: list[Tensor]) -> None:
    net, _ = narrow(arch)
    task = ARCHITECTURES[arch].task
    regions = task.regions_of(net, images, seed=1)
    assert {len(boxes) for boxes in regions.proposals} == {PROPOSALS}
    assert {len(boxes) for boxes in regions.objects} == {OBJECTS if arch == KEYPOINT else 0}
    for boxes in (*regions.proposals, *regions.objects):
        assert (boxes >= 0).all()
        assert (boxes <= 64).all()
    again = task.regions_of(net.bfloat16().float(), images, seed=1)
    assert [len(boxes) for boxes in again.proposals] == [len(boxes) for boxes in regions.proposals]
    alone = task.outputs_of(net, images)
    assert list(alone) == ["features"]
    with torch.no_grad():
        outputs = task.outputs_of(net, images, regions)
    assert outputs["class_logits"][0].shape == (len(images) * PROPOSALS, spec_classes(net))


def spec_classes(net: Any) -> int:
    return int(net.roi_heads.box_predictor.cls_score.out_features)


def test_a_detector_that_proposes_nothing_has_the_whole_image_as_region(images: list[Tensor]) -> None:
    net: Any = narrow(MASK)[0]
    net.rpn.score_thresh = 2.0
    regions = ARCHITECTURES[MASK].task.regions_of(net, images[:1])
    assert torch.equal(regions.proposals[0], torch.tensor([[0.0, 0.0, 64.0, 64.0]]).expand(PROPOSALS, 4))
    assert len(regions.objects[0]) == OBJECTS
