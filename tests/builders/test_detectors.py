"""The detectors: torchvision's habits on a compressed backbone."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn
from torchvision.models import ResNet50_Weights, get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.errors import DataError, UsageError
from norton_det.structure.describe import describe
from norton_det.structure.history import untrained_since, with_step

KINDS = ("faster", "mask", "keypoint")
RATES = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "r50.safetensors"
    net, spec = nd.compress(None, arch="resnet50", rank=1, rates=RATES, criterion="norm")
    nd.save(net, spec, path)
    return path


def norms(net: nn.Module) -> set[type]:
    return {type(m) for m in net.backbone.body.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))}


def trainable(net: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in net.backbone.body.named_parameters() if p.requires_grad}


def test_torchvision_knows_the_builders() -> None:
    names = {f"{kind}rcnn_cpresnet50_fpn" for kind in KINDS} | {"cpresnet50", "resnet56_cifar"}
    assert names <= set(list_models())
    assert get_model_weights("fasterrcnn_cpresnet50_fpn") is FasterRCNN_ResNet50_FPN_Weights
    importlib.reload(nd)
    importlib.reload(importlib.import_module("norton_det.builders.detectors"))
    assert names <= set(list_models())


def test_published_parameters_and_weights_of_the_backbone(backbone: Path) -> None:
    net = get_model(
        "fasterrcnn_cpresnet50_fpn", weights_backbone=str(backbone), num_classes=91, norm_layer=nn.BatchNorm2d
    )
    assert sum(p.numel() for p in net.parameters()) == 22_012_182
    source, _ = nd.load(backbone)
    assert all(
        torch.equal(t, net.backbone.body.state_dict()[n]) for n, t in source.state_dict().items() if "fc" not in n
    )
    net.eval()
    found = net([torch.rand(3, 100, 120)])[0]
    assert {"boxes", "labels", "scores"} == found.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_train_and_predict(kind: str, backbone: Path) -> None:
    net = get_model(
        f"{kind}rcnn_cpresnet50_fpn", weights_backbone=backbone, num_classes=4, box_score_thresh=0.0, **TINY
    )
    box = torch.tensor([[5.0, 5, 40, 50]])
    target = {"boxes": box, "labels": torch.tensor([2])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    target["keypoints"] = torch.full((1, 17, 3), 20.0)
    losses = net([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.backbone.fpn.parameters())
    found = net.eval()([torch.rand(3, 64, 64)])[0]
    assert len(found["boxes"]) > 0
    expected = {"mask": ("masks", (1, 64, 64)), "keypoint": ("keypoints", (17, 3))}
    if kind in expected:
        name, shape = expected[kind]
        assert found[name].shape[1:] == shape


def test_norms_and_trainable_layers_follow_torchvision(backbone: Path) -> None:
    scratch = get_model("fasterrcnn_cpresnet50_fpn")
    assert norms(scratch) == {nn.BatchNorm2d}
    assert trainable(scratch) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    one = get_model(
        "fasterrcnn_cpresnet50_fpn", weights_backbone=backbone, trainable_backbone_layers=1, norm_layer=nn.BatchNorm2d
    )
    assert norms(one) == {nn.BatchNorm2d}
    assert trainable(one) == {"layer4"}
    dense = get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    assert dense.state_dict().keys() == scratch.state_dict().keys()


@pytest.fixture
def with_history(backbone: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that returns the file of a backbone with other steps in its history."""

    def file(**steps: Any) -> Path:
        net, spec = nd.load(backbone)
        nd.save(net, replace(spec, provenance={**spec.provenance, **steps}), tmp_path / "other.safetensors")
        return tmp_path / "other.safetensors"

    return file


PRETRAINED, ALL = {"layer2", "layer3", "layer4"}, {"conv1", "layer1", "layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("steps", "norm", "stages", "logged"),
    [
        (
            {},
            nn.BatchNorm2d,
            {*ALL, "bn1"},
            "compressed, not trained since: norms of the backbone are BatchNorm2d, 5 of 5",
        ),
        (
            {"calibrate": {"layers": {"conv1": {}}}},
            FrozenBatchNorm2d,
            ALL,
            "calibrated, not trained since: norms of the backbone are FrozenBatchNorm2d, 5 of 5",
        ),
        ({"calibrate": {"layers": {}}}, nn.BatchNorm2d, {*ALL, "bn1"}, "compressed, not trained"),  # it was undone
        ({"train": {}}, FrozenBatchNorm2d, PRETRAINED, ""),
        ({"calibrate": {"layers": {"conv1": {}}}, "train": {}}, FrozenBatchNorm2d, PRETRAINED, ""),
    ],
)
def test_what_is_trainable_follows_the_history_of_a_backbone(
    steps: dict[str, Any],
    norm: type,
    stages: set[str],
    logged: str,
    with_history: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = get_model("fasterrcnn_cpresnet50_fpn", weights_backbone=with_history(**steps))
    assert norms(net) == {norm}
    assert trainable(net) == stages
    assert logged in caplog.text
    assert bool(logged) == ("trainable" in caplog.text)


def test_what_is_said_explicitly_is_done(backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"norm_layer": "FrozenBatchNorm2d", "trainable_backbone_layers": 2}
    net = get_model("fasterrcnn_cpresnet50_fpn", weights_backbone=backbone, **options)
    assert (norms(net), trainable(net)) == ({FrozenBatchNorm2d}, {"layer3", "layer4"})
    assert "trainable" not in caplog.text


def test_a_detector_of_a_compressed_backbone_has_its_history(backbone: Path, tmp_path: Path) -> None:
    """It counts as trained once it was; compressed again, it does not."""
    net, spec = make_detector("fasterrcnn_cpresnet50_fpn", weights_backbone=backbone, **TINY)
    assert untrained_since(spec) == "compressed"
    trained = with_step(spec, "train", {})
    assert untrained_since(trained) == ""
    assert untrained_since(nd.compress(net, arch=trained, rates="[0.5]*20", criterion="norm")[1]) == "compressed"
    assert untrained_since(replace(spec, provenance={})) == "", "a dense one"


def test_published_weights_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = get_model("resnet50")
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, **kw: dense.state_dict())
    for weights in (ResNet50_Weights.IMAGENET1K_V2, "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V1"):
        net = get_model("fasterrcnn_cpresnet50_fpn", weights_backbone=weights)
        assert torch.equal(net.backbone.body.layer4[2].conv3.weight, dense.layer4[2].conv3.weight)
        assert norms(net) == {FrozenBatchNorm2d}
    detector = get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda self, **kw: detector.state_dict())
    net = get_model("fasterrcnn_cpresnet50_fpn", weights="COCO_V1").eval()
    norm = net.backbone.body.bn1
    assert ((norm.running_var + norm.eps) - detector.backbone.body.bn1.running_var).abs().max() < 1e-7
    norm = nd.compress("COCO_V1", arch="fasterrcnn_cpresnet50_fpn")[0].backbone.body.bn1  # of another class
    assert ((norm.running_var + norm.eps) - detector.backbone.body.bn1.running_var).abs().max() < 1e-7
    with pytest.raises(UsageError, match=r"num_classes is 5; .*COCO_V1 has 91"):
        get_model("fasterrcnn_cpresnet50_fpn", weights="COCO_V1", num_classes=5)


def test_a_trained_detector_is_compressed_whole(tmp_path: Path) -> None:
    """FPN and heads come along: pruning nothing at full rank changes nothing, and one file holds it all."""
    dense = get_model(
        "fasterrcnn_resnet50_fpn",
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        box_score_thresh=0.01,
    ).eval()
    exact, spec = nd.decompose(dense, "fasterrcnn_cpresnet50_fpn", 9)
    assert len(spec.ranks) == 16
    assert spec.options == {"min_size": [64], "box_score_thresh": 0.01}
    image = [torch.rand(3, 64, 80)]
    with torch.no_grad():
        before, after = dense.backbone(image[0][None]), exact.backbone(image[0][None])
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)
    assert torch.equal(exact.roi_heads.box_head.fc6.weight, dense.roi_heads.box_head.fc6.weight)
    narrow, spec = nd.prune(exact, spec, RATES)
    assert narrow.backbone.fpn.inner_blocks[0][0].in_channels == 230
    nd.save(narrow, spec, tmp_path / "det.safetensors")
    loaded, _ = nd.load(tmp_path / "det.safetensors")
    narrow.eval()
    (a,), (b,) = narrow(image), loaded(image)
    assert len(a["boxes"]) > 0
    assert all(torch.equal(a[name], b[name]) for name in a)
    again = get_model("fasterrcnn_cpresnet50_fpn", weights=tmp_path / "det.safetensors", norm_layer=nn.BatchNorm2d)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in narrow.parameters())
    with pytest.raises(UsageError, match=r"det\.safetensors: is a fasterrcnn_cpresnet50_fpn; expected a maskrcnn"):
        get_model("maskrcnn_cpresnet50_fpn", weights=tmp_path / "det.safetensors")


def test_frozen_norms_survive_a_file(backbone: Path, tmp_path: Path) -> None:
    options = {"num_keypoints": 5, "norm_layer": "FrozenBatchNorm2d", **TINY}
    net, spec = make_detector("keypointrcnn_cpresnet50_fpn", weights_backbone=backbone, **options)
    assert replace(describe(net, "keypointrcnn_cpresnet50_fpn"), kept=spec.kept) == spec
    assert spec.options["norm_layer"] == "FrozenBatchNorm2d"
    nd.save(net, spec, tmp_path / "kp.safetensors")
    loaded, again = nd.load(tmp_path / "kp.safetensors")
    assert norms(loaded) == {FrozenBatchNorm2d}
    assert again.options == spec.options
    image = [torch.rand(3, 64, 64)]
    (a,), (b,) = net.eval()(image), loaded(image)
    assert len(a["keypoints"]) > 0
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_wrong_arguments(backbone: Path, tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch="resnet56_cifar")
    nd.save(net, spec, tmp_path / "cifar.safetensors")
    name = "fasterrcnn_cpresnet50_fpn"
    with pytest.raises(UsageError, match="is a resnet56_cifar; expected a resnet50"):
        get_model(name, weights_backbone=tmp_path / "cifar.safetensors")
    with pytest.raises(DataError, match=r"none\.safetensors: no such file"):
        get_model(name, weights_backbone=tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match=r"should be in the range \[0,5\], got 6"):
        get_model(name, weights_backbone=backbone, trainable_backbone_layers=6)
    with pytest.raises(UsageError, match="unknown norm_layer 'LayerNorm'"):
        get_model(name, norm_layer="LayerNorm")
    with pytest.raises(UsageError, match="is a resnet56_cifar; expected a resnet50"):
        get_model("cpresnet50", weights=tmp_path / "cifar.safetensors")


def test_classifier_builders(backbone: Path) -> None:
    net = get_model("cpresnet50", weights=backbone)
    assert sum(p.numel() for p in net.parameters()) == 5_885_736
    assert net.training
    assert get_model("resnet56_cifar", num_classes=3).linear.out_features == 3


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"box_detections_per_img": -3}, "'roi_heads.detections_per_img' is -3; expected numbers from 1 to"),
        ({"box_positive_fraction": 7}, "positive_fraction' is 7; expected numbers from 0 to 1"),
        ({"bbox_reg_weights": (0, 1, 1, 1)}, "'roi_heads.box_coder.weights' is (0, 1, 1, 1); expected numbers from"),
        ({"anchor_sizes": [[-8]] * 5}, "((-8,), (-8,), (-8,), (-8,), (-8,)); expected numbers from"),
        ({"anchor_sizes": [[8]] * 2}, "((8,), (8,)); expected sizes for 5 levels"),
        ({"image_std": [0, 1, 1]}, "'transform.image_std' is (0, 1, 1); expected numbers from"),
        ({"rpn_batch_size_per_image": 0}, "batch_size_per_image' is 0; expected numbers from 1 to"),
        ({"box_score_thresh": float("nan")}, "'roi_heads.score_thresh' is nan; expected numbers from -1 to 1"),
        ({"rpn_pre_nms_top_n_train": 0}, "'rpn._pre_nms_top_n' is {'training': 0, 'testing': 1000}; expected numbers"),
        ({"box_nms_thresh": 2.0}, "'roi_heads.nms_thresh' is 2.0; expected numbers from 0 to 1"),
        ({"rpn_fg_iou_thresh": 5.0}, "'rpn.proposal_matcher.high_threshold' is 5.0; expected numbers from 0 to 1"),
    ],
)
def test_options_that_no_detector_can_train_with_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as raised:
        nd.fasterrcnn_cpresnet50_fpn(weights_backbone=None, **options)
    assert part in str(raised.value)
