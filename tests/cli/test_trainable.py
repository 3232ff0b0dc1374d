"""What train_det trains of given weights: by their history, which it continues."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det as nd
from norton_det.cli import train_det
from norton_det.cli.common import Parser
from norton_det.cli.config_defaults import parse_arguments
from norton_det.cli.detector_to_train import detector_to_train
from norton_det.data import CocoDataset
from norton_det.structure.history import untrained_since


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "r50.pth"
    torch.save(resnet50().state_dict(), path)
    return path


def made(line: str, shapes: Path) -> tuple[Any, nd.Spec, int]:
    """Return the detector of a command, its spec, and the number of trainable stages."""
    parser = Parser()
    train_det.add_arguments(parser)
    args = parse_arguments(parser, shlex.split(f"--model fasterrcnn_resnet50_fpn {line}"))
    net, spec = detector_to_train(args, CocoDataset(shapes, "train", train=True), None)
    return net, spec, args.trainable_backbone_layers


def norm(net: Any) -> type:
    return type(net.backbone.body.layer1[0].bn2)


@pytest.mark.parametrize(
    ("line", "norm_class", "stages"),
    [
        ("", FrozenBatchNorm2d, 3),
        ("-dr 1 -cpr [0.5]*20 --criterion norm", nn.BatchNorm2d, 5),
        pytest.param(
            "-cpr [0.5]*20 --criterion norm --norm-layer FrozenBatchNorm2d --trainable-backbone-layers 2",
            FrozenBatchNorm2d,
            2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_backbone_that_the_command_compresses_is_trained_whole(
    line: str, norm_class: type, stages: int, dense: Path, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, spec, count = made(f"--weights-backbone {dense} {line}", shapes)
    assert (norm(net), count) == (norm_class, stages)
    frozen = [name for name, p in net.backbone.body.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (stages < 5)
    assert ("of 5 stages are trainable" in caplog.text) == (stages == 5)
    assert list(spec.provenance)[-1] == "train"
    assert untrained_since(spec) == "", "its files will have been trained"


@pytest.mark.slow
def test_a_compressed_detector_is_trained_whole_once(dense: Path, shapes: Path, tmp_path: Path) -> None:
    """And what was trained since as torchvision trains it."""
    net, spec, _ = made(f"--weights-backbone {dense}", shapes)
    net, spec = nd.compress(net, arch=spec, rates="[0.5]*20", criterion="norm")
    nd.save(net, spec, tmp_path / "small.safetensors")
    net, spec, count = made(f"--weights {tmp_path / 'small.safetensors'}", shapes)
    assert (norm(net), count) == (nn.BatchNorm2d, 5)
    nd.save(net, spec, tmp_path / "trained.safetensors")
    net, _, count = made(f"--weights {tmp_path / 'trained.safetensors'}", shapes)
    assert (norm(net), count) == (FrozenBatchNorm2d, 3)
