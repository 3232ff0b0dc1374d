"""The training loop and detection's part in it: going on exactly, accumulating, losses, batches."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file
from torch import Tensor, nn

from norton_det import Spec
from norton_det.builders import make_detector
from norton_det.data import Augment, Batching, CocoDataset, evaluation_batches, make_shapes, training_batches
from norton_det.data.coco.copy_paste import copy_paste
from norton_det.errors import DataError, TerminatedError
from norton_det.models.tensor_files import read_file
from norton_det.training import Detection, NonFiniteLossError, TrainingState, TrainOptions, train_one_epoch
from norton_det.training.detection import keep_losses_finite
from norton_det.training.ema import moving_average
from norton_det.training.fit import fit
from norton_det.training.optim import make_optimizer, make_schedule

CPU = torch.device("cpu")


class FakeDetector(nn.Module):
    """Losses of a detector's form, with batch norm and random numbers in them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(4))
        self.net(torch.zeros(2, 3, 64, 64))

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        found = nn.functional.dropout(self.net(torch.stack(images)))
        wanted = torch.stack([target["boxes"].mean(0) / 64 for target in targets])
        return {"loss_box_reg": (found - wanted).square().mean(), "loss_size": found.abs().mean() * 0.1}


class Killed(Detection):
    """A task that sends its process SIGTERM in a certain batch, and measures something cheap."""

    def losses(self, model: nn.Module, batch: Any) -> Any:
        self.kill()
        return super().losses(model, batch)

    def evaluate(self, network: nn.Module) -> dict[str, float | None]:
        return {"bbox_AP": network.net[0].weight.sum().item()}


def task(data: CocoDataset, kill: Callable[[], None] = lambda: None) -> Killed:
    batches = partial(training_batches, data, Batching(2, seed=3))
    made = Killed(batches, list, CPU, evaluator=None, kinds=("bbox",))
    object.__setattr__(made, "kill", kill)
    return made


def fresh(lr: float = 0.05) -> TrainingState:
    torch.manual_seed(0)
    net = FakeDetector()
    optimizer = make_optimizer(net, "sgd", lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = make_schedule(optimizer, "multisteplr", epochs=4, steps=[1, 3])
    return TrainingState(net, Spec("fake", 3), optimizer, schedule, ema=moving_average(net, 0.9))


OPTIONS = TrainOptions(warm_up=True, clip_grad_norm=1.0, ema_steps=2, seed=5)


def run(data: CocoDataset, folder: Path, stops: list[int], **changes: Any) -> dict[str, Any]:
    """Train 4 epochs of 3 batches, ended by SIGTERM in each of ``stops``; return the last checkpoint."""
    folder.mkdir()
    done = 0

    def kill() -> None:
        nonlocal done
        if done in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        done += 1

    options = TrainOptions(**{**vars(OPTIONS), **changes})
    checkpoint = folder / "checkpoint.pth"
    for _ in range(len(stops) + 1):
        torch.manual_seed(torch.seed())  # what came before does not matter
        state = fresh()
        if checkpoint.exists():
            state.restore(torch.load(checkpoint, weights_only=True), checkpoint)
        with contextlib.suppress(TerminatedError):
            fit(state, task(data, kill), options, epochs=4, folder=folder, args={})
    return torch.load(checkpoint, weights_only=True)


def flat(value: Any) -> Any:
    """Return a value whose equality is that of all bits in it."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items() if key not in ("seconds", "rng")}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def data(shapes: Path) -> CocoDataset:
    images = CocoDataset(shapes, "train", train=True)
    images.transform = Augment("hflip")
    assert len(images) == 6
    return images


@pytest.fixture(autouse=True)
def _any_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("norton_det.training.fit.save", lambda net, spec, path: save_file(net.state_dict(), path))


def test_a_run_that_is_stopped_anywhere_ends_as_if_it_were_not(data: CocoDataset, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", [])
    assert (whole["epoch"], whole["step"], len(whole["history"])) == (3, 0, 4)
    assert len({line["bbox_AP"] for line in whole["history"]}) == 4
    for stops in [[k] for k in range(12)] + [[2, 5, 9], [4, 4, 4]]:
        stopped = run(data, tmp_path / str(stops), stops)
        assert flat(stopped) == flat(whole), stops


def test_a_run_that_accumulates_goes_on_after_an_update(data: CocoDataset, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", [], accumulate=2)
    for k in range(4):
        assert flat(run(data, tmp_path / str(k), [k], accumulate=2)) == flat(whole), k


def test_a_checkpoint_of_other_seeds_is_resumed_with_a_warning(
    data: CocoDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh().save(tmp_path, {}, numbered=False)
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    fresh().restore(content, "new.pth")
    assert "other seeds" not in caplog.text
    spec = {name: value for name, value in json.loads(content["spec"]).items() if name not in ("version", "norton_det")}
    fresh().restore({**content, "spec": json.dumps(spec)}, "old.pth")
    assert "old.pth: written before format version 1, with other seeds" in caplog.text


def test_the_checkpoint_before_an_evaluation_is_enough(data: CocoDataset, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", [])
    (tmp_path / "cut").mkdir()
    state, failing = fresh(), task(data)
    object.__setattr__(failing, "evaluate", lambda network: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(state, failing, OPTIONS, epochs=4, folder=tmp_path / "cut", args={})
    content = torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)
    assert (content["epoch"], content["step"]) == (-1, 3)
    state = fresh()
    state.restore(content, "x")
    fit(state, task(data), OPTIONS, epochs=4, folder=tmp_path / "cut", args={})
    assert flat(torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)) == flat(whole)


def test_the_files_of_a_run(data: CocoDataset, tmp_path: Path) -> None:
    told: list[Any] = []
    fit(
        fresh(),
        task(data),
        OPTIONS,
        epochs=4,
        folder=tmp_path,
        args={"lr": 1},
        eval_every=3,
        keep="all",
        on_line=told.append,
    )
    numbered = {f"model_{epoch}.pth" for epoch in range(4)}
    others = {"checkpoint.pth", "last.safetensors", "best.safetensors", "metrics.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == numbered | others
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told == lines
    steps = [line["iteration"] for line in lines if "iteration" in line]
    assert steps == [2, 5, 8, 11], "the last of an epoch, with fewer than log_every iterations"
    lines = [line for line in lines if "iteration" not in line]
    assert ["bbox_AP" in line for line in lines] == [False, False, True, True], "every third, and the last"
    assert [torch.load(tmp_path / name, weights_only=True)["epoch"] for name in sorted(numbered)] == [0, 1, 2, 3]
    keys = {"model", "optimizer", "lr_scheduler", "epoch", "args", "scaler"}
    assert keys <= torch.load(tmp_path / "checkpoint.pth", weights_only=True).keys()
    best = max(lines[2:], key=lambda line: line["bbox_AP"])
    weights = read_file(tmp_path / "best.safetensors")
    assert weights["net.0.weight"].sum().item() == best["bbox_AP"]


def test_a_checkpoint_that_lacks_something(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.pth: lacks model, optimizer"):
        fresh().restore({"epoch": 1, "lr_scheduler": {}, "rng": None}, "x.pth")


class Plain:
    """A task on numbers: the loss is the weight times the batch."""

    device, best = CPU, "score"

    def losses(self, model: nn.Module, batch: float) -> dict[str, Tensor]:
        return {"loss_a": model.weight * batch, "loss_b": model.weight * 0 + 1}

    def describe(self, batch: float) -> str:
        return "images 17, 23"


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


def plain_state(lr: float) -> TrainingState:
    net = Weight()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return TrainingState(net, Spec("fake", 3), optimizer, make_schedule(optimizer, "multisteplr", epochs=2, steps=[1]))


def test_accumulated_batches_make_one_update_of_their_mean() -> None:
    state = plain_state(lr=0.1)
    assert train_one_epoch(state.model, state, [1.0, 2.0, 6.0, 4.0, 8.0], Plain(), TrainOptions(accumulate=3))
    assert state.model.weight.item() == pytest.approx(1 - 0.1 * (3 + 6))


def test_a_loss_that_is_not_finite_stops_with_its_images_and_parts() -> None:
    state = plain_state(lr=0.1)
    message = r"loss is nan in batch 1 of epoch 0: loss_a nan, loss_b 1 on images 17, 23"
    with pytest.raises(NonFiniteLossError, match=message):
        train_one_epoch(state.model, state, [0.0, float("nan")], Plain(), TrainOptions())
    assert state.model.weight.item() == 1


def test_the_first_epoch_warms_up_to_the_full_rate_as_torchvisions_script_does() -> None:
    rates: list[float] = []
    state = plain_state(lr=0.5)
    state.optimizer.register_step_pre_hook(lambda optimizer, *args: rates.append(optimizer.param_groups[0]["lr"]))
    options = TrainOptions(warm_up=True)
    assert train_one_epoch(state.model, state, [0.0] * 5, Plain(), options)
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    rise = torch.optim.lr_scheduler.LinearLR(reference, start_factor=1e-3, total_iters=4)
    expected = []
    for _ in range(5):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        rise.step()
    assert rates == pytest.approx(expected)
    state.epoch, state.step = 0, 0
    assert train_one_epoch(state.model, state, [0.0] * 2, Plain(), options)
    assert rates[5:] == [0.5, 0.5]


@pytest.mark.parametrize(("kind", "dataset"), [("mask", "coco"), ("keypoint", "coco_kp")])
def test_images_without_objects_leave_no_parameter_without_gradient(kind: str, dataset: str) -> None:
    points = {"num_keypoints": 5} if kind == "keypoint" else {}
    # With all proposals filtered there is nothing to classify either.
    net, _ = make_detector(f"{kind}rcnn_cpresnet50_fpn", num_classes=4, **TINY, **points, rpn_score_thresh=1.0)
    keep_losses_finite(net)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    target |= {"masks": torch.zeros(0, 64, 64, dtype=torch.uint8), "keypoints": torch.zeros(0, 5, 3)}
    for threshold in (1.0, 0.0):
        net.rpn.score_thresh = threshold
        net.zero_grad()
        losses = net([torch.rand(3, 64, 64)], [target])
        assert f"loss_{kind}" in losses
        loss = sum(losses.values())
        assert torch.isfinite(loss)
        loss.backward()
        waiting = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert not waiting


def numbers(batches: Any) -> list[list[int]]:
    return [[target["image_id"] for target in targets] for _, targets in batches]


def test_processes_share_every_batch_and_every_image(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", train=13, val=5, size=32)
    train = CocoDataset(tmp_path / "shapes", "train", train=True)
    val = CocoDataset(tmp_path / "shapes", "val")
    one = numbers(training_batches(train, Batching(4, seed=1), epoch=2))
    parts = [numbers(training_batches(train, Batching(2, 1, rank, 2), epoch=2)) for rank in (0, 1)]
    assert one == [a + b for a, b in zip(*parts, strict=True)]
    assert one != numbers(training_batches(train, Batching(4, seed=1), epoch=3))
    assert numbers(training_batches(train, Batching(4, seed=1), 2, start=2)) == one[2:]
    seen = [n for rank in (0, 1) for (n,) in numbers(evaluation_batches(val, Batching(4, 0, rank, 2)))]
    assert sorted(seen) == val.ids
    assert len(seen) == 5


def test_augmentation_does_not_depend_on_where_it_happens(shapes: Path) -> None:
    train = CocoDataset(shapes, "train", train=True)
    train.transform = Augment("multiscale")
    whole = [images for images, _ in training_batches(train, Batching(2), epoch=1)]
    torch.rand(7)
    rest = [images for images, _ in training_batches(train, Batching(2), epoch=1, start=1, workers=1)]
    for expected, images in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, images, strict=True))


def test_pasted_objects_hide_what_is_below() -> None:
    def square(y: int, x: int) -> Tensor:
        mask = torch.zeros(8, 8, dtype=torch.uint8)
        mask[y : y + 3, x : x + 3] = 1
        return mask

    def target(number: int, masks: list[Tensor]) -> dict[str, Any]:
        count = len(masks)
        labels = torch.full((count,), number)
        return {"image_id": number, "masks": torch.stack(masks), "labels": labels, "iscrowd": torch.zeros(count)}

    images = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]
    targets = [target(1, [square(0, 0), square(4, 4)]), target(2, [square(0, 0), square(0, 5)])]
    pasted = 0
    for seed in range(6):
        torch.manual_seed(seed)
        mixed, found = copy_paste(images, targets)
        for i, (image, moved) in enumerate(zip(mixed, found, strict=True)):
            foreign = moved["labels"] != targets[i]["labels"][0]
            cover = moved["masks"][foreign].bool().any(0)
            assert torch.equal(image[0] != images[i][0], cover), "pixels come along with their masks"
            assert (moved["masks"].sum(0) <= 1).all(), "no pixel belongs to two"
            assert moved["area"].tolist() == [mask.sum().item() for mask in moved["masks"]]
            for mask, (x1, y1, x2, y2) in zip(moved["masks"], moved["boxes"].tolist(), strict=True):
                rows, columns = mask.nonzero().T
                assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            pasted += int(foreign.sum())
    assert 0 < pasted < 24
    assert torch.equal(targets[0]["masks"][0], square(0, 0)), "what was given stays as it is"
