"""A detector for other classes: rows of the same name compute what they did, and all else is what it was."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import TINY, Refused
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import norton_det as nd
from norton_det.builders import make_detector, with_classes
from norton_det.runtime.initialisation import without_initialisation

CLASSES = ("__background__", "cat", "dog", "cow")
POINTS = ("nose", "tail")
SLOW = pytest.mark.slow


def detector(kind: str, classes: Sequence[str] = CLASSES, **options: Any) -> tuple[nn.Module, nd.Spec]:
    """Return a detector with random weights."""
    if kind == "keypoint":
        options |= {"keypoints": POINTS}
    with without_initialisation():
        net, spec = make_detector(f"{kind}rcnn_cpresnet50_fpn", classes=classes, **TINY, **options)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_()
    return net, spec


@pytest.fixture(scope="module")
def detectors() -> Callable[[str], tuple[nn.Module, nd.Spec]]:
    """Return :func:`detector`, which makes each of them once."""
    return cache(detector)


def outputs(net: Any) -> dict[str, Tensor]:
    """Return what the last layers of the heads compute, the rows along dimension 1."""
    generator = torch.Generator().manual_seed(0)
    heads = net.roi_heads
    vectors, maps = torch.rand(3, 1024, generator=generator), torch.rand(2, 512, 4, 4, generator=generator)
    with torch.no_grad():
        logits, deltas = heads.box_predictor(vectors)
        found = {"logits": logits, "deltas": deltas.unflatten(1, (-1, 4))}
        if heads.mask_predictor is not None:
            found["masks"] = heads.mask_predictor(maps[:, :256])
        if heads.keypoint_predictor is not None:
            found["points"] = heads.keypoint_predictor(maps)
    return found


def assert_kept(before: Any, after: Any, names: dict[str, tuple[Sequence[str], Sequence[str]]]) -> None:
    theirs, ours = outputs(before), outputs(after)
    for part, tensor in ours.items():
        old, new = names["points" if part == "points" else "classes"]
        assert tensor.shape[1] == len(new)
        for row, name in enumerate(new):
            if name in old:
                torch.testing.assert_close(tensor[:, row], theirs[part][:, old.index(name)])
    dependent = ("box_predictor", "mask_fcn_logits", "kps_score_lowres")
    state = before.state_dict()
    for name, tensor in after.state_dict().items():
        assert any(part in name for part in dependent) or torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("kind", ["faster", *(pytest.param(kind, marks=SLOW) for kind in ("mask", "keypoint"))])
def test_rows_of_the_same_name_are_kept(detectors: Callable[[str], tuple[nn.Module, nd.Spec]], kind: str) -> None:
    generator = Random(kind)
    for _ in range(2):
        classes = generator.sample([*CLASSES[1:], "pig", "hen"], generator.randint(1, 5))
        points = generator.sample([*POINTS, "ear"], generator.randint(1, 3))
        check_rows(*detectors(kind), kind, classes, points)


def check_rows(net: nn.Module, spec: nd.Spec, kind: str, classes: list[str], points: list[str]) -> None:
    keypoints = tuple(points) if kind == "keypoint" else ()
    other, changed = with_classes(net, spec, classes, keypoints or None)
    assert changed.classes == ("__background__", *classes)
    assert changed.keypoints == keypoints
    assert_kept(net, other, {"classes": (CLASSES, changed.classes), "points": (POINTS, keypoints)})
    back, same = with_classes(other, changed, CLASSES, POINTS if keypoints else None)
    assert same == spec
    assert_kept(other, back, {"classes": (changed.classes, CLASSES), "points": (keypoints, POINTS)})


@pytest.mark.slow
def test_a_state_dict_tells_how_many_keypoints_there_are(
    detectors: Callable[[str], tuple[nn.Module, nd.Spec]], tmp_path: Path
) -> None:
    net, spec = detectors("keypoint")
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    _, found = make_detector(spec.arch, weights=tmp_path / "theirs.pth", **TINY)
    assert (found.num_classes, found.options["num_keypoints"]) == (4, 2)
    _, other = make_detector(spec.arch, weights=tmp_path / "theirs.pth", classes=["a"], keypoints="xyz", **TINY)
    assert (other.num_classes, other.options["num_keypoints"], other.keypoints) == (2, 3, ("x", "y", "z"))


@pytest.mark.slow
def test_nothing_is_changed_where_nothing_differs(detectors: Callable[[str], tuple[nn.Module, nd.Spec]]) -> None:
    net, spec = detectors("keypoint")
    assert with_classes(net, spec, CLASSES[1:], POINTS) == (net, spec)
    assert with_classes(net, spec, CLASSES)[0] is net


@pytest.mark.slow
def test_a_compressed_detector_stays_compressed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its file is the source, by name of the classes; the decomposed last layer of its head as well."""
    net, spec = detector("faster")
    layers = {"roi_heads.box_predictor.cls_score": 3}
    net, spec = nd.compress(net, arch=spec, rank=layers, decomposition=dict.fromkeys(layers, "svd"))
    net, spec = nd.compress(net, arch=spec, rates="[0.9]*20", criterion="norm")
    file = tmp_path / "small.safetensors"
    nd.save(net, spec, file)
    other, changed = make_detector(spec.arch, weights=file, classes=["dog", "pig"], norm_layer="BatchNorm2d")
    assert (changed.widths, changed.decompositions) == (spec.widths, spec.decompositions)
    assert_kept(net, other, {"classes": (CLASSES, changed.classes)})
    assert f"{file}: the detector gets other classes; kept: dog; new: pig; left out: cat, cow" in caplog.text
    assert f"{file}: new rows in roi_heads.box_predictor." in caplog.text
    assert changed.provenance["other classes"] == {"kept": ["dog"], "new": ["pig"], "left out": ["cat", "cow"]}
    nd.save(other, changed, tmp_path / "other.safetensors")
    assert nd.load(tmp_path / "other.safetensors")[1].classes == ("__background__", "dog", "pig")


def test_what_is_frozen_stays_so_and_the_mode_too() -> None:
    net, spec = detector("faster", weights_backbone=None)
    net.backbone.body.requires_grad_(False)
    other, _ = with_classes(net.eval(), spec, ["cat"])
    assert not other.training
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {
        n for n, p in net.named_parameters() if p.requires_grad
    }


def test_torchvisions_weights_keep_classes_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    enum = FasterRCNN_ResNet50_FPN_Weights
    names = tuple(enum.COCO_V1.meta["categories"])
    net, _ = detector("faster", classes=[str(i) for i in range(90)])
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **kwargs: dict(state))
    other, spec = make_detector("fasterrcnn_cpresnet50_fpn", weights="COCO_V1", classes=["zebra", "gnu"], **TINY)
    assert spec.classes == ("__background__", "zebra", "gnu")
    theirs, ours = outputs(net)["logits"], outputs(other)["logits"]
    torch.testing.assert_close(ours[:, :2], theirs[:, [0, names.index("zebra")]])
    assert "kept: zebra; new: gnu; left out: person, bicycle, " in caplog.text


def test_a_detector_without_names_keeps_the_background_alone(caplog: pytest.LogCaptureFixture) -> None:
    net, spec = detector("faster")
    other, changed = with_classes(net, replace(spec, classes=()), CLASSES, source="old.pth")
    assert "old.pth: does not name its classes: none can be kept" in caplog.text
    theirs, ours = outputs(net)["logits"], outputs(other)["logits"]
    assert [torch.allclose(ours[:, i], theirs[:, i]) for i in range(4)] == [True, False, False, False]
    assert changed.classes == CLASSES


def test_wrong_arguments(detectors: Callable[[str], tuple[nn.Module, nd.Spec]], refused: Refused) -> None:
    name = "fasterrcnn_cpresnet50_fpn"
    refused(lambda: make_detector(name, num_classes=4, classes=["a"]), 2, "num_classes is 4; 2 classes are named")
    refused(
        lambda: with_classes(*detectors("faster"), ["a"], ["nose"]), 2, f"a {name} has no keypoints; nose are given"
    )
    net, spec = nd.compress(None, arch="resnet56_cifar")
    refused(lambda: with_classes(net, spec, ["a"]), 2, "is a resnet56_cifar; expected a detector")
