"""RetinaNet, FCOS and DeepLabV3 on a compressed ResNet-50, and torchvision's helpers for pruned ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models, resnet50
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights, RetinaNet_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

import norton_det as nd
from norton_det.builders.torchvision_helpers import deeplabv3_resnet, resnet_fpn_extractor
from norton_det.structure.settings import spec_from_configuration

ENUMS = {
    "retinanet_cpresnet50_fpn": RetinaNet_ResNet50_FPN_Weights,
    "fcos_cpresnet50_fpn": FCOS_ResNet50_FPN_Weights,
    "deeplabv3_cpresnet50": DeepLabV3_ResNet50_Weights,
}
FCOS = pytest.param("fcos", marks=pytest.mark.slow)
TINY = {"num_classes": 3, "min_size": 64, "max_size": 64, "score_thresh": 0.0, "detections_per_img": 5}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "r50.safetensors"
    spec = spec_from_configuration("resnet50", 2, "[0.]+[0.3]*3+[0.8]*16")
    nd.save(nd.build(spec), spec, path)
    return path


def calm(net: Any) -> Any:
    """Make the predictions differ between places: new heads predict nearly the same everywhere."""
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.startswith("head.") and parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.05)
    return net.eval()


def assert_same_detections(ours: nn.Module, theirs: nn.Module) -> None:
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        (a,), (b,) = ours(images), theirs(images)
    assert len(a["boxes"]) > 0
    assert torch.equal(a["labels"], b["labels"])
    torch.testing.assert_close(a["scores"], b["scores"])
    torch.testing.assert_close(a["boxes"], b["boxes"])


def test_torchvision_knows_them() -> None:
    assert ENUMS.keys() <= set(list_models())
    for name, enum in ENUMS.items():
        assert get_model_weights(name) is enum


@pytest.mark.parametrize("kind", ["retinanet", FCOS])
def test_dense_detectors_are_torchvisions(kind: str, tmp_path: Path) -> None:
    theirs = calm(get_model(f"{kind}_resnet50_fpn", weights=None, weights_backbone=None, **TINY))
    torch.save({"model": theirs.state_dict()}, tmp_path / "x.pth")
    assert_same_detections(get_model(f"{kind}_cpresnet50_fpn", weights=tmp_path / "x.pth", **TINY).eval(), theirs)


@pytest.mark.parametrize("kind", ["retinanet", FCOS])
def test_compressed_detectors_train_and_are_built_from_their_tensors(kind: str, backbone: Path, tmp_path: Path) -> None:
    net: Any = calm(get_model(f"{kind}_cpresnet50_fpn", weights_backbone=backbone, **TINY))
    assert net.backbone.body.layer2[1].conv2.rank == 2
    assert net.backbone.fpn.inner_blocks[0][0].in_channels == 358
    target = {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([1])}
    sum(net.train()([torch.rand(3, 64, 64)], [target]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.backbone.fpn.parameters())
    torch.save(net.state_dict(), tmp_path / "x.pth")
    assert_same_detections(get_model(f"{kind}_cpresnet50_fpn", weights=tmp_path / "x.pth", **TINY).eval(), net.eval())


def test_segmentation(backbone: Path, tmp_path: Path) -> None:
    theirs = get_model("deeplabv3_resnet50", weights=None, weights_backbone=None, num_classes=3, aux_loss=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "dense.pth")
    ours = get_model("deeplabv3_cpresnet50", weights=tmp_path / "dense.pth", num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours(images), theirs(images)
        assert list(found) == list(expected) == ["out", "aux"]
        assert all(torch.equal(found[key], expected[key]) for key in found)
        net: Any = get_model("deeplabv3_cpresnet50", weights_backbone=backbone, num_classes=3)
        assert net.backbone(images)["out"].shape[-1] == 8
        assert net.backbone.layer4[1].conv2.geometry()["dilation"] == (4, 4)
        torch.save(net.state_dict(), tmp_path / "x.pth")
        again = get_model("deeplabv3_cpresnet50", weights=tmp_path / "x.pth", num_classes=3).eval()
        assert torch.equal(again(images)["out"], net.eval()(images)["out"])


def test_a_dilated_backbone_keeps_its_dilation_in_its_file(backbone: Path, tmp_path: Path, refused: Refused) -> None:
    dilated = (False, True, True)
    net = nd.backbone(backbone, replace_stride_with_dilation=dilated).eval()
    assert net.strides == (4, 8, 8, 8)
    net.save(tmp_path / "d.safetensors")
    again = nd.backbone(tmp_path / "d.safetensors").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images)["3"], net(images)["3"])
    same = nd.backbone(backbone, replace_stride_with_dilation=dilated)
    assert (again.spec, same.spec) == (net.spec, net.spec)
    twice = {"replace_stride_with_dilation": dilated}
    refused(lambda: nd.backbone(tmp_path / "d.safetensors", **twice), 2, "the file has strides of its own already")


def test_helpers_take_what_another_program_pruned() -> None:
    net = resnet50(num_classes=2)
    theirs = _resnet_fpn_extractor(net, 2, returned_layers=[2, 3])
    ours = resnet_fpn_extractor(net, 2, returned_layers=(2, 3))
    ours.fpn.load_state_dict(theirs.fpn.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours.eval()(images), theirs.eval()(images)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    trained = {name.split(".")[1] for name, p in ours.body.named_parameters(prefix="b") if p.requires_grad}
    assert trained == {"layer3"}
    narrow: Any = resnet50()
    last = narrow.layer4[2]
    nd_spec = spec_from_configuration("resnet50", None, "[0.]+[0.5]*3+[0.]*16")
    assert deeplabv3_resnet(nd.build(nd_spec), 4, aux=True).aux_classifier[0].in_channels == 512
    assert last.conv3.out_channels == 2048


def test_published_weights_and_wrong_ones(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    theirs: Any = get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None)
    monkeypatch.setattr(RetinaNet_ResNet50_FPN_Weights, "get_state_dict", lambda self, **kw: theirs.state_dict())
    net: Any = nd.retinanet_cpresnet50_fpn(weights="COCO_V1", min_size=64)
    norm = net.backbone.body.bn1
    assert ((norm.running_var + norm.eps) - theirs.backbone.body.bn1.running_var).abs().max() < 1e-7
    assert torch.equal(
        net.head.classification_head.cls_logits.weight, theirs.head.classification_head.cls_logits.weight
    )
    refused(lambda: nd.retinanet_cpresnet50_fpn(weights="COCO_V1", num_classes=3), 2, "num_classes is 3;", "has 91")
    refused(lambda: nd.retinanet_cpresnet50_fpn(weights=backbone), 3, "r50.safetensors: does not fit the network")
    refused(lambda: nd.fcos_cpresnet50_fpn(weights=RetinaNet_ResNet50_FPN_Weights.COCO_V1), 2, "expected FCOS_ResNet50")
    refused(lambda: nd.deeplabv3_cpresnet50(weights=tmp_path / "none.pth"), 3, "none.pth: no such file")
