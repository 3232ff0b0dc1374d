"""Distillation: distances, a task with a teacher, going on exactly, the tools' flags."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, epochs_in, tool
from torch import Tensor, nn
from torch.optim import SGD

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.data import Augment, Batching, CocoDataset, training_batches
from norton_det.errors import UsageError
from norton_det.training import Detection, TrainingState, TrainOptions, train_one_epoch
from norton_det.training.classification import Classification
from norton_det.training.distillation import (
    by_features,
    by_logits,
    correlation_distance,
    feature_channels,
    feature_distance,
    load_teacher,
    logits_distance,
)
from norton_det.training.optim import make_schedule

CPU = torch.device("cpu")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 3))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 3, 8, 8), torch.randint(3, (5,))) for _ in range(count)]


def task(**options: Any) -> Classification:
    return Classification(lambda epoch, start: [], lambda: [], CPU, 3, **options)


def test_distance_of_logits() -> None:
    ours, theirs = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(logits_distance(ours, theirs, temperature=3), expected)
    assert logits_distance(theirs, theirs + 2, temperature=3).item() == pytest.approx(0, abs=1e-5), "a shift is free"
    # Hinton's limit: at a high temperature the gradient is that of half the squared error of the centred logits.
    logits_distance(ours, theirs, temperature=1e3).backward()
    centred = [logits.detach() - logits.detach().mean(1, keepdim=True) for logits in (ours, theirs)]
    torch.testing.assert_close(ours.grad, (centred[0] - centred[1]) / (7 * 5), rtol=0.02, atol=2e-4)


def test_distance_of_features_is_free_of_scale() -> None:
    theirs = {str(level): torch.randn(2, 3, 8 >> level, 8 >> level) for level in range(3)}
    ours = {name: maps + 0.1 * torch.randn_like(maps) for name, maps in theirs.items()}
    distance = feature_distance(ours, theirs)
    assert 0 < distance < 0.1
    assert feature_distance(theirs, theirs) == 0
    nothing = {name: torch.zeros_like(maps) for name, maps in theirs.items()}
    assert feature_distance(nothing, theirs).item() == pytest.approx(1)
    scales = {"0": 1e3, "1": 1.0, "2": 1e-2}
    scaled = ({name: scales[name] * maps for name, maps in side.items()} for side in (ours, theirs))
    torch.testing.assert_close(feature_distance(*scaled), distance)


@pytest.mark.parametrize("amp", [False, True])
def test_losses_are_mixed_and_the_teacher_stays(amp: bool) -> None:
    net, teacher, (batch,) = small(), small(), batches(1)
    before = copy.deepcopy(teacher.state_dict())
    taught = by_logits(task(), teacher, weight=0.75, temperature=2)
    reference = copy.deepcopy(net)
    with torch.autocast("cpu", enabled=amp):
        losses = taught.losses(net, batch)
        logits, wanted = reference(batch[0]), copy.deepcopy(teacher)(batch[0])
    expected = {
        "loss": 0.25 * nn.functional.cross_entropy(logits.float(), batch[1]),
        "loss_teacher": 0.75 * logits_distance(logits, wanted, temperature=2),
    }
    torch.testing.assert_close(losses, expected, rtol=0.02 if amp else 1e-5, atol=0.01 if amp else 1e-6)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not net._forward_hooks, "nothing stays behind"


def test_the_teacher_sees_what_the_network_sees() -> None:
    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            self.seen = images
            return torch.zeros(len(images), 3)

    net, teacher, mixing = small(), Recorder(), task(mixup_alpha=1.0)
    given = []
    net.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    (batch,) = batches(1)
    by_logits(mixing, teacher, weight=1, temperature=1).losses(net, batch)
    assert torch.equal(teacher.seen, given[0])
    assert not torch.equal(teacher.seen, batch[0])


def test_a_run_that_is_stopped_goes_on_exactly() -> None:
    net, teacher, data = small(), small(), batches(4)
    other = copy.deepcopy(net)
    taught = by_logits(task(mixup_alpha=0.4), teacher, weight=0.5, temperature=4)

    def state_of(model: nn.Module) -> TrainingState:
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        return TrainingState(model, nd.Spec("x", 3), optimizer, make_schedule(optimizer, "steplr", epochs=9))

    whole, state = state_of(net), state_of(other)
    assert train_one_epoch(net, whole, data, taught, TrainOptions())
    assert not train_one_epoch(other, state, data, taught, TrainOptions(), stop=lambda: state.step == 1)
    assert train_one_epoch(other, state, data[2:], taught, TrainOptions())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert set(whole._content({})["model"]) == set(net.state_dict()), "the teacher is not in the checkpoint"


def test_distance_by_correlation() -> None:
    theirs = {str(level): torch.randn(2, 3, 8 >> level, 8 >> level) for level in range(3)}
    ours = {name: maps + 0.5 * torch.randn_like(maps) for name, maps in theirs.items()}
    distance = correlation_distance(ours, theirs)
    scale, shift = torch.rand(3, 1, 1) + 0.1, 5 * torch.randn(3, 1, 1)
    moved = {name: scale * maps + shift for name, maps in ours.items()}
    for pair in ((moved, theirs), (theirs, moved)):
        torch.testing.assert_close(correlation_distance(*pair), distance)
    assert correlation_distance(theirs, theirs) == 0
    negative = {name: -maps for name, maps in theirs.items()}
    assert correlation_distance(negative, theirs).item() == pytest.approx(2)
    expected = []
    for name, maps in theirs.items():
        pairs = zip(ours[name].transpose(0, 1).flatten(1), maps.transpose(0, 1).flatten(1), strict=True)
        expected.append(sum(1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs) / 3)
    torch.testing.assert_close(distance, sum(expected) / 3)
    dead = {name: torch.zeros_like(maps) for name, maps in theirs.items()}
    assert correlation_distance(dead, theirs).item() == pytest.approx(0.5)


def test_a_narrower_pyramid_imitates_its_own_channels(shapes: Path) -> None:
    net, spec = make_detector("fasterrcnn_cpresnet50_fpn", **TINY, num_classes=4)
    _, narrower = nd.prune(net, spec, "[0.]*20+[0.,0.5]+[0.]*4", criterion="norm", scope="detector")
    channels = feature_channels(narrower)
    assert channels is not None
    assert channels.tolist() == list(narrower.kept["fpn"])
    assert feature_channels(spec) is None
    maps = {"0": torch.randn(2, 256, 4, 4)}
    ours = {"0": maps["0"][:, channels]}
    taught = by_features(task(), net, weight=1, distance="pkd", channels=channels)
    assert taught.distance(ours, maps) == 0
    with pytest.raises(UsageError, match="teacher: its feature maps have 256 channels where the network's have 128"):
        by_features(task(), net, weight=1).distance(ours, maps)


def test_a_detector_imitates_features(shapes: Path) -> None:
    options = {**TINY, "num_classes": 4}
    net, _ = make_detector("fasterrcnn_cpresnet50_fpn", **options)
    teacher = copy.deepcopy(net)
    data = CocoDataset(shapes, "train", train=True)
    data.transform = Augment("hflip")
    batch = next(iter(training_batches(data, Batching(2), 0, 0, factor=-1, workers=0)))
    detection = Detection(lambda *_: [], list, CPU, evaluator=None, kinds=("bbox",))  # type: ignore[arg-type]
    taught = by_features(detection, teacher, weight=2)
    losses = taught.losses(net.train(), batch)
    own = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert losses.keys() == own | {"loss_teacher"}
    assert losses["loss_teacher"] > 0, "batch norms of a batch are not those of the statistics"
    net.backbone.load_state_dict(teacher.backbone.state_dict())
    net.backbone.eval()
    assert taught.losses(net, batch)["loss_teacher"] == 0, "the same network on the same transformed images"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, n: by_logits(t, n, weight=1.5, temperature=1), "teacher_weight is 1.5; expected between 0 and 1"),
        (lambda t, n: by_logits(t, n, weight=1, temperature=0), "teacher_temperature is 0; expected above 0"),
        (lambda t, n: by_features(t, n, weight=-1), "teacher_weight is -1; expected at least 0"),
        (
            lambda t, n: by_features(t, n, weight=1, distance="l1"),
            "unknown teacher distance 'l1'; expected one of: mse",
        ),
    ],
)
def test_wrong_weights(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(task(), small())


def test_teachers_that_do_not_fit(tmp_path: Path, small_net: Path) -> None:
    student = nd.load(small_net)[1]
    files = {}
    for name, spec in {
        "ten": nd.Spec("resnet56_cifar", 10),
        "large": nd.Spec("resnet50", 3),
        "deep": nd.Spec("resnet110_cifar", 3),
    }.items():
        files[name] = tmp_path / f"{name}.safetensors"
        nd.save(nd.build(spec), spec, files[name])
    with pytest.raises(UsageError, match=r"ten.safetensors: has 10 classes; the network has 3"):
        load_teacher(files["ten"], student)
    with pytest.raises(UsageError, match=r"large.safetensors: is a resnet50; expected a network with the inputs of"):
        load_teacher(files["large"], student)
    load_teacher(files["deep"], student)
    detectors = [
        nd.Spec("fasterrcnn_cpresnet50_fpn", 3, options=options) for options in ({}, {"image_mean": [0.0, 0.0, 0.0]})
    ]
    nd.save(nd.build(detectors[1]), detectors[1], tmp_path / "detector.safetensors")
    with pytest.raises(UsageError, match=r"image_mean is \[0.0, 0.0, 0.0\]; expected that of the network, the default"):
        load_teacher(tmp_path / "detector.safetensors", detectors[0])


def test_tools(classes: Path, small_net: Path, tmp_path: Path, refused: Refused) -> None:
    dense = nd.Spec("resnet56_cifar", 3)
    torch.save(nd.build(dense).state_dict(), tmp_path / "dense.pt")
    words = ["--data-path", str(classes), "--device", "cpu", "-j", "0", "-b", "8", "--epochs", "1", "--amp"]
    words += ["--weights", str(small_net), "--output-dir", str(tmp_path / "out"), "--teacher"]
    assert tool("train_cls").main([*words, str(tmp_path / "dense.pt"), "--teacher-weight", "0.5"]) == 0
    line = epochs_in(tmp_path / "out")[0]
    assert line["train_loss"] > 0
    content = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)
    assert content["model"].keys() == nd.load(small_net)[0].state_dict().keys()
    for wrong, code, message in (
        ([str(tmp_path / "none.pt")], 3, "none.pt: no such file"),
        (
            [str(tmp_path / "dense.pt"), "--teacher-weight", "2"],
            2,
            "--teacher-weight is 2; expected a number from 0 to 1",
        ),
        ([str(small_net), "--teacher-temperature", "0"], 2, "--teacher-temperature is 0; expected a number above 0"),
    ):
        refused(partial(tool("train_cls").main, ["--overwrite", *words, *wrong]), code, message)


@pytest.mark.slow
def test_detection_tool(shapes: Path, tmp_path: Path) -> None:
    words = f"--data-path {shapes} --model fasterrcnn_cpresnet50_fpn --device cpu -j 0 --epochs 1 --amp".split()
    words += ["--model-kwargs", json.dumps(TINY)]
    assert tool("train_det").main([*words, "--output-dir", str(tmp_path / "dense")]) == 0
    teacher = ["--teacher", str(tmp_path / "dense" / "last.safetensors"), "--teacher-weight", "3"]
    more = ["--rank", "1", "--form", "dense", "--output-dir", str(tmp_path / "out")]
    assert tool("train_det").main([*words, *more, *teacher]) == 0
    content = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)
    assert not any("teacher" in name for name in content["model"])
