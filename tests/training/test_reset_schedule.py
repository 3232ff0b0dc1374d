"""On resuming, another learning rate or schedule is refused, or takes effect with --reset-schedule."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, epochs_in, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from norton_det.cli.detector_to_train import warn_of_ignored
from norton_det.spec import Spec
from norton_det.training import TrainingState
from norton_det.training.optim import SCHEDULES, WARM_UPS, make_optimizer, make_schedule

EPOCHS = 8


def state_of(options: dict[str, Any]) -> TrainingState:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    given = {name: options[name] for name in ("lr", "momentum", "weight_decay")}
    optimizer = make_optimizer(net, "sgd", norm_weight_decay=options["norm"], **given)
    schedule = make_schedule(optimizer, epochs=EPOCHS, **options["schedule"])
    return TrainingState(net, Spec("resnet56_cifar", 3), optimizer, schedule)


def advance(state: TrainingState, epochs: int) -> list[float]:
    """Train without a gradient; return the learning rates."""
    rates = []
    for _ in range(epochs):
        rates.append(state.optimizer.param_groups[0]["lr"])
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.optimizer.step()
        state.schedule.step()
    return rates


schedules = st.fixed_dictionaries(
    {
        "name": st.sampled_from(SCHEDULES),
        "gamma": st.floats(0.1, 0.9),
        "steps": st.lists(st.integers(1, EPOCHS), max_size=3, unique=True).map(sorted),
        "step_size": st.integers(1, 4),
        "warmup_epochs": st.integers(0, 3),
        "warmup_method": st.sampled_from(WARM_UPS),
    }
)
runs = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-4, 1),
        "momentum": st.floats(0.1, 0.9),
        "weight_decay": st.floats(0, 0.1),
        "norm": st.floats(0.2, 0.3),
        "schedule": schedules,
    }
)


@settings(deadline=None, max_examples=50)
@given(runs, runs, st.integers(1, EPOCHS - 1))
def test_a_reset_schedule_is_where_it_would_be_from_the_start(
    old: dict[str, Any], new: dict[str, Any], position: int
) -> None:
    before, resumed, fresh = state_of(old), state_of(new), state_of(new)
    advance(before, position)
    resumed.restore(before._content({}), "checkpoint.pth", reset_schedule=True)
    expected = advance(fresh, EPOCHS)[position:]
    assert advance(resumed, EPOCHS - position) == pytest.approx(expected)
    options = [{n: v for n, v in g.items() if n != "params"} for g in resumed.optimizer.param_groups]
    assert options == [{n: pytest.approx(g[n]) for n in g if n != "params"} for g in fresh.optimizer.param_groups]
    assert torch.equal(resumed.model[0].weight.isfinite(), torch.ones(3, 2, dtype=torch.bool))


def test_momenta_are_kept() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "norm": 0.2, "schedule": {"name": "steplr"}}
    before, resumed = state_of(options), state_of({**options, "lr": 0.5, "momentum": 0.5})
    advance(before, 2)
    resumed.restore(before._content({}), "checkpoint.pth", reset_schedule=True)
    momenta = [entry["momentum_buffer"] for entry in resumed.optimizer.state.values()]
    assert [m.tolist() for m in momenta] == [e["momentum_buffer"].tolist() for e in before.optimizer.state.values()]
    assert {group["momentum"] for group in resumed.optimizer.param_groups} == {0.5}


def words_of(command: str, data: Path, out: Path, net: Path) -> list[str]:
    line = f"--data-path {data} --output-dir {out} --device cpu -j 0 --lr 0.001"
    if command == "train_cls":
        return [*line.split(), "--weights", str(net), "-b", "4"]
    return [*line.split(), "--model", "fasterrcnn_cpresnet50_fpn", "--model-kwargs", json.dumps(TINY)]


@pytest.fixture(scope="module", params=["train_cls", "train_det"])
def begun(
    request: pytest.FixtureRequest, classes: Path, shapes: Path, small_net: Path, tmp_path_factory: Any
) -> tuple[str, list[str], Path]:
    """A command, its words, and the checkpoint of its first epoch."""
    out = tmp_path_factory.mktemp(request.param)
    words = words_of(request.param, classes if request.param == "train_cls" else shapes, out, small_net)
    assert tool(request.param).main([*words, "--epochs", "1"]) == 0
    return request.param, words, out / "checkpoint.pth"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr 0.5", "--lr is 0.5, was 0.001; expected the same, or --reset-schedule"),
        ("--lr-steps 1 2 --lr-gamma 0.5", "--lr-steps is [1, 2], was ["),
        ("--wd 0.1", "--weight-decay is 0.1, was 0.0001"),
        ("--lr-scheduler cosineannealinglr", "--epochs is 2, was 1; --lr-scheduler is cosineannealinglr, was "),
        ("--opt adamw --reset-schedule", "--opt is adamw; "),
    ],
)
def test_what_would_have_no_effect_is_refused(
    flags: str, message: str, begun: tuple[str, list[str], Path], tmp_path: Path, refused: Refused
) -> None:
    command, words, checkpoint = begun
    out = tmp_path / "out"
    words = [*words, "--output-dir", str(out), "--epochs", "2", "--resume", str(checkpoint), *flags.split()]
    refused(lambda: tool(command).main(words), 2, message, str(checkpoint), unwritten=out)


def test_reset_schedule_without_resume_is_refused(begun: tuple[str, list[str], Path], refused: Refused) -> None:
    command, words, _ = begun
    refused(lambda: tool(command).main([*words, "--reset-schedule"]), 2, "--reset-schedule without --resume")


def test_a_new_rate_takes_effect_with_reset_schedule(begun: tuple[str, list[str], Path], tmp_path: Path) -> None:
    command, words, checkpoint = begun
    new = "--epochs 2 --lr 0.01 --lr-scheduler steplr --lr-step-size 1 --lr-gamma 0.5 --reset-schedule"
    words = [*words, "--output-dir", str(tmp_path), "--resume", str(checkpoint), *new.split()]
    assert tool(command).main(words) == 0
    assert [line["lr"] for line in epochs_in(tmp_path)] == [0.001, 0.005], "0.01 after one step"


def test_what_only_a_new_detector_has_is_reported_as_ignored(caplog: pytest.LogCaptureFixture) -> None:
    names = ("rank", "rates", "min_size", "max_size", "model_kwargs", "norm_layer", "weights_backbone")
    before = argparse.Namespace(**dict.fromkeys(names), **{"path": "run/checkpoint.pth"})
    before.rank, before.model_kwargs = "1", {}
    checkpoint = SimpleNamespace(args=vars(before), path=before.path)
    resumed = argparse.Namespace(**vars(before))
    warn_of_ignored(resumed, checkpoint)
    assert not caplog.text
    resumed.min_size, resumed.model_kwargs, resumed.rank = 64, {"box_nms_thresh": 0.3}, None
    warn_of_ignored(resumed, checkpoint)
    assert "--resume: --min-size 64 is ignored: the detector is that of run/checkpoint.pth" in caplog.text
    assert "--model-kwargs {'box_nms_thresh': 0.3} is ignored" in caplog.text
    assert "--rank" not in caplog.text
