"""The backbone in timm, in detectron2 and in mmdetection, and through torch.hub.

Detectron2 and mmdetection do not install beside current releases of torch: stand-ins have the parts of their published
code that the adapters meet. Detectron2's registry is that of fvcore, which is installed.
"""

import importlib.util
import runpy
import sys
from abc import ABCMeta, abstractmethod
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from conftest import Refused
from fvcore.common.registry import Registry as FvcoreRegistry
from torch import nn

import norton_det as nd
from norton_det.adapters import detectron2_backbone, register_detectron2, register_mmdet, register_timm
from norton_det.builders.backbone_networks import Backbone
from norton_det.structure.settings import spec_from_configuration

ROOT = Path(__file__).parents[2]
WIDTHS = [179, 358, 716, 2048]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "r50.safetensors"
    spec = spec_from_configuration("resnet50", 1, "[0.]+[0.3]*3+[0.8]*16")
    nd.save(nd.build(spec), spec, path)
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def expected_maps(weights: Path, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(nd.backbone(weights).eval()(images).values())


def trained(net: nn.Module) -> set[str]:
    return {name.split(".")[1] for name, parameter in net.named_parameters() if parameter.requires_grad}


def test_timm(weights: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    register_timm()
    register_timm()
    assert timm.is_model("cpresnet50")
    net: Any = timm.create_model("cpresnet50", features_only=True, out_indices=(1, 2, 3, 4), weights=weights).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = net(images)
    assert isinstance(maps, list)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected_maps(weights, images), strict=True))
    assert net.feature_info.channels() == [each.shape[1] for each in maps] == WIDTHS
    # It answers as a network of timm's own does.
    own = timm.create_model("resnet50", features_only=True).feature_info
    dense = timm.create_model("cpresnet50", features_only=True).feature_info
    assert dense.channels() == own.channels()
    assert dense.reduction() == own.reduction()
    assert dense.module_name()[1:] == own.module_name()[1:]  # the stem's ReLU has another name
    for arguments in ("num_chs",), ("reduction", 2), ("num_chs", [1, 3]):
        assert dense.get(*arguments) == own.get(*arguments)
    assert dense.get_dicts(["num_chs"], [1, 2]) == own.get_dicts(["num_chs"], [1, 2])
    assert timm.create_model("cpresnet50", num_classes=7).fc.out_features == 7
    assert timm.create_model("cpresnet50", num_classes=0, weights=weights)(images).shape == (1, 2048)
    refused(lambda: timm.create_model("cpresnet50", pretrained=True), 2, "expected weights=FILE")
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(register_timm, 2, 'timm is not installed; expected: pip install "norton-det[timm]"')


class DetectronBackbone(nn.Module, metaclass=ABCMeta):
    @abstractmethod
    def forward(self) -> Any: ...

    @property
    def size_divisibility(self) -> int:
        return 0

    @abstractmethod
    def output_shape(self) -> Any: ...


class ShapeSpec(namedtuple("_Shape", ["channels", "height", "width", "stride"])):
    def __new__(cls, *, channels: Any = None, height: Any = None, width: Any = None, stride: Any = None) -> "ShapeSpec":
        return super().__new__(cls, channels, height, width, stride)


def test_detectron2(weights: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(register_detectron2, 2, "detectron2 is not installed")
    registry = FvcoreRegistry("BACKBONE")
    stand_in(monkeypatch, "detectron2")
    stand_in(monkeypatch, "detectron2.modeling", Backbone=DetectronBackbone, BACKBONE_REGISTRY=registry)
    stand_in(monkeypatch, "detectron2.layers", ShapeSpec=ShapeSpec)
    register_detectron2()
    register_detectron2()
    model = SimpleNamespace(
        CPRESNET50=SimpleNamespace(WEIGHTS=str(weights)),
        RESNETS=SimpleNamespace(OUT_FEATURES=["res2", "res3", "res4", "res5"]),
        FPN=SimpleNamespace(IN_FEATURES=["res3", "res4", "res5"]),
        BACKBONE=SimpleNamespace(FREEZE_AT=2),
    )
    cfg, shape = SimpleNamespace(MODEL=model), ShapeSpec(channels=3)
    net = registry.get("build_cpresnet50_backbone")(cfg, shape).eval()
    assert isinstance(net, DetectronBackbone)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = net(images)
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    expected = expected_maps(weights, images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps.values(), expected, strict=True))
    shapes = net.output_shape()
    assert {name: (each.channels, each.stride) for name, each in shapes.items()} == {
        name: (each.shape[1], 64 // each.shape[-1]) for name, each in maps.items()
    }
    assert (net.size_divisibility, trained(net)) == (0, {"layer2", "layer3", "layer4"})
    pyramid = registry.get("build_cpresnet50_fpn_backbone")(cfg, shape)
    assert list(pyramid(images)) == list(pyramid.output_shape()) == ["p3", "p4", "p5", "p6"]
    assert pyramid.size_divisibility == 32
    assert detectron2_backbone(None, ["res4"]).output_shape()["res4"].stride == 16
    refused(lambda: detectron2_backbone(weights, ["res1"]), 2, "out_features has 'res1'; expected some of: res2")


class MMEngineRegistry:
    def __init__(self) -> None:
        self.types: dict[str, type] = {}

    def get(self, key: str) -> type | None:
        return self.types.get(key)

    def register_module(self, *, name: str, module: type) -> None:
        assert name not in self.types
        self.types[name] = module

    def build(self, config: dict[str, Any]) -> Any:
        arguments = dict(config)
        return self.types[arguments.pop("type")](**arguments)


class BaseModule(nn.Module):
    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg


def test_mmdet(weights: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(register_mmdet, 2, "mmdet is not installed")
    registry = MMEngineRegistry()
    stand_in(monkeypatch, "mmdet")
    stand_in(monkeypatch, "mmdet.registry", MODELS=registry)
    stand_in(monkeypatch, "mmengine")
    stand_in(monkeypatch, "mmengine.model", BaseModule=BaseModule)
    assert register_mmdet() is register_mmdet() is registry.get("CPResNet50")
    net = registry.build({"type": "CPResNet50", "weights": str(weights), "frozen_stages": 1, "out_indices": (0, 3)})
    images = torch.rand(2, 3, 64, 64)
    expected = expected_maps(weights, images)
    with torch.no_grad():
        maps = net.eval()(images)
    assert isinstance(maps, tuple)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, (expected[0], expected[3]), strict=True))
    assert trained(net) == {"layer2", "layer3", "layer4"}
    assert not any(module.training for module in net.train().modules() if isinstance(module, nn.BatchNorm2d))
    assert net.training
    free = registry.build({"type": "CPResNet50", "weights": str(weights), "norm_eval": False})
    assert all(module.training for module in free.train().modules())
    assert trained(free) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def test_torch_hub(weights: Path) -> None:
    offered = runpy.run_path(str(ROOT / "hubconf.py"))
    builders = {name for name in nd.__all__ if "_cpresnet50" in name or name in ("backbone", "cpresnet50")}
    assert builders <= offered.keys()
    assert all(importlib.util.find_spec(name) for name in offered["dependencies"])  # as torch.hub asks
    net = torch.hub.load(str(ROOT), "backbone", str(weights), source="local")
    assert isinstance(net, Backbone)
    assert list(net.channels) == WIDTHS
