"""The second version of Faster and Mask R-CNN: torchvision's networks, checkpoints and rules, and files of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, get_model, get_model_weights, list_models, resnet50
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_V2_Weights

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.models import ARCHITECTURES
from norton_det.runtime.initialisation import without_initialisation

KINDS = ("faster", "mask")
ENUMS = {"faster": FasterRCNN_ResNet50_FPN_V2_Weights, "mask": MaskRCNN_ResNet50_FPN_V2_Weights}
FIRST = [f"{kind}rcnn_{{}}_fpn" for kind in (*KINDS, "keypoint")]
SLOW = pytest.mark.slow
IMAGES = [torch.rand(3, 60, 64, generator=torch.Generator().manual_seed(1))]
TORCHVISIONS: dict[str, Any] = {name: value for name, value in TINY.items() if name != "anchor_sizes"}
TORCHVISIONS["box_score_thresh"] = 0.0


def torchvisions(kind: str, num_classes: int = 91) -> nn.Module:
    """Return torchvision's own detector with weights and statistics, in evaluation mode."""
    names = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
    return with_statistics(get_model(f"{kind}rcnn_resnet50_fpn_v2", **names, **TORCHVISIONS))


def publish(monkeypatch: pytest.MonkeyPatch, enum: type, state: Mapping[str, Tensor]) -> None:
    """Let torchvision's weights be those of a state dict: nothing is downloaded."""
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **kwargs: dict(state))


def assert_same_detections(net: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        (ours,), (theirs,) = net.eval()(IMAGES), other(IMAGES)
    assert ours.keys() == theirs.keys()
    assert len(ours["boxes"]) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_torchvision_knows_the_builders() -> None:
    for kind, enum in ENUMS.items():
        name = f"{kind}rcnn_cpresnet50_fpn_v2"
        assert name in list_models()
        assert get_model_weights(name) is enum
        assert ARCHITECTURES[name].weights is enum


@pytest.mark.parametrize("kind", ["faster", pytest.param("mask", marks=SLOW)])
def test_checkpoints_of_torchvision_give_its_outputs_bit_by_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    """By name, by enum, and as a file with torchvision's keys; and its detector as an object."""
    theirs, arch, enum = torchvisions(kind), f"{kind}rcnn_cpresnet50_fpn_v2", ENUMS[kind]
    publish(monkeypatch, enum, theirs.state_dict())
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    with without_initialisation():
        made = {each: make_detector(arch, weights=each, **TORCHVISIONS) for each in ("COCO_V1", enum.DEFAULT, file)}
        compressed = [nd.compress(model, arch=arch) for model in (theirs, file)]
    for source, (net, spec) in made.items():
        assert_same_detections(net, theirs)
        assert {type(module) for module in net.modules() if "BatchNorm" in type(module).__name__} == {nn.BatchNorm2d}
        assert spec.classes == (() if source is file else tuple(enum.COCO_V1.meta["categories"]))
        assert spec.provenance["source"] == ("theirs.pth" if source is file else str(enum.COCO_V1))
    for net, spec in compressed:
        assert not spec.decompositions
        assert not spec.widths
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert_same_detections(compressed[0][0], theirs)
    for weights in ("COCO_V1", file):
        refused(
            lambda weights=weights: make_detector(arch, weights=weights, num_classes=5), 2, "num_classes is 5", "91"
        )
    refused(lambda: make_detector(f"{kind}rcnn_cpresnet50_fpn", weights=file), 3, "theirs.pth", "unexpected tensors")
    refused(lambda: make_detector(arch, weights=tmp_path / "none.pth"), 3, "none.pth: no such file")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"{kind}rcnn_{{}}_fpn_v2" for kind in KINDS), *FIRST])
def test_norms_and_frozen_layers_are_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From random weights, those of a backbone and those of a detector, at any number of trainable layers."""
    ours, theirs = name.format("cpresnet50"), name.format("resnet50")
    with without_initialisation():
        publish(monkeypatch, ResNet50_Weights, with_statistics(resnet50()).state_dict())
        state = with_statistics(get_model(theirs, weights=None, weights_backbone=None)).state_dict()
        publish(monkeypatch, get_model_weights(ours), {n: torch.zeros_like(tensor) for n, tensor in state.items()})
        none: dict[str, Any] = {"weights": None, "weights_backbone": None}
        backbone, whole = none | {"weights_backbone": "IMAGENET1K_V1"}, none | {"weights": "COCO_V1"}
        for options in (
            none,
            backbone,
            backbone | {"trainable_backbone_layers": 5},
            whole,
            whole | {"trainable_backbone_layers": 0},
        ):
            net, expected = get_model(ours, **options), get_model(theirs, **options)
            assert {n: p.requires_grad for n, p in net.named_parameters()} == {
                n: p.requires_grad for n, p in expected.named_parameters()
            }
            assert {n: type(module) for n, module in net.named_modules()} == {
                n: type(module) for n, module in expected.named_modules()
            }


@pytest.mark.slow
def test_an_argument_wins_over_the_rule_and_a_file_keeps_its_norms(tmp_path: Path) -> None:
    arch = "fasterrcnn_cpresnet50_fpn_v2"
    net, spec = make_detector(arch, norm_layer="FrozenBatchNorm2d", num_classes=3, **TINY)
    assert {type(net.backbone.body.bn1).__name__, type(net.backbone.fpn.inner_blocks[0][1]).__name__} == {
        "FrozenBatchNorm2d",
        "BatchNorm2d",
    }
    nd.save(net, spec, tmp_path / "net.safetensors")
    again, after = make_detector(arch, weights=tmp_path / "net.safetensors")
    assert type(again.backbone.body.bn1).__name__ == "FrozenBatchNorm2d"
    assert after.options == spec.options


@pytest.mark.parametrize("anchors", [1, 2])
def test_the_rpn_fits_the_anchors(anchors: int) -> None:
    sizes = [[8 * 2**level * (i + 1) for i in range(anchors)] for level in range(5)]
    with torch.device("meta"):
        net: Any = ARCHITECTURES["maskrcnn_cpresnet50_fpn_v2"].build(3, anchor_sizes=sizes)
    assert net.rpn.head.cls_logits.out_channels == 3 * anchors


@pytest.mark.slow
def test_compressed_deployed_and_restored(tmp_path: Path) -> None:
    net, spec = nd.compress(torchvisions("mask", 4), arch="maskrcnn_cpresnet50_fpn_v2", rank=1, rates="[0.5]*20")
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, again = nd.load(tmp_path / "net.safetensors")
    assert again == spec
    assert_same_detections(net, loaded)
    fast = nd.deploy(net, IMAGES, repeats=1)
    assert len(fast.deployment.folded) == 53 + 8 + 4 + 4, "body, FPN, box and mask head"
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    assert_same_detections(nd.load(tmp_path / "fast.safetensors")[0], fast)
