"""A training goes on only with a checkpoint whose every field has a value of its kind."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from norton_det import Spec
from norton_det.errors import DataError
from norton_det.training import TrainingState
from norton_det.training.checkpoint_fields import check_like
from norton_det.training.optim import make_optimizer, make_schedule


def new_state(momentum: float = 0.9) -> TrainingState:
    net = nn.Linear(2, 2)
    optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=momentum, weight_decay=0.0)
    schedule = make_schedule(optimizer, "multisteplr", epochs=3, steps=[1, 2])
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    history = [{"epoch": 0, "lr": 0.1, "top1": 50.0}]
    return TrainingState(net, Spec("resnet56_cifar", num_classes=2), optimizer, schedule, epoch=0, history=history)


FIELDS = ["epoch", "step", "loss", "history", "iteration", "window", "args", "spec", "rng", "cuda_rng", "scaler"]
FIELDS += ["model", "optimizer", "lr_scheduler", "model_ema"]


@pytest.mark.parametrize("value", ["abc", [1], -2, 1.5, math.nan, True, 10**400, torch.ones(3), {"a": "b"}], ids=str)
def test_values_of_another_kind_are_refused(value: Any) -> None:
    accepted = {1.5: {"loss"}, True: set(), 10**400: set(), "abc": {"spec"}, -2: {"loss"}}
    for field in FIELDS:
        state = new_state()
        content = {**state._content({}), field: value}
        known = accepted.get(value, set()) if isinstance(value, (str, int, float)) else set()
        if isinstance(value, dict) and field in ("args", "scaler", "model_ema"):
            known = {field}
        if field == "spec" and value == "abc":
            known = set()  # it is no JSON
        try:
            state.restore(content, "x.pth")
        except DataError as error:
            assert str(error).startswith(("x.pth: ", "spec ")), (field, str(error))  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            assert field not in known, str(error)  # noqa: PT017
        else:
            assert field in known, field


@pytest.mark.parametrize("change", ["shape", "NaN", "expanded", "text", "group", "method", "far"])
def test_states_of_optimizer_and_schedule(change: str) -> None:
    state = new_state()
    content = state._content({})
    optimizer, schedule = content["optimizer"], content["lr_scheduler"]
    if change == "shape":
        optimizer["state"][0]["momentum_buffer"] = torch.ones(3)
    elif change == "NaN":
        optimizer["state"][0]["momentum_buffer"] = torch.full((2, 2), math.nan)
    elif change == "expanded":
        optimizer["state"][0]["momentum_buffer"] = torch.zeros(1).expand(10**9)
    elif change == "text":
        optimizer["state"][0]["momentum_buffer"] = "x"
    elif change == "group":
        optimizer["param_groups"][0]["lr"] = "0.1"
    elif change == "method":
        schedule["step"] = "x"
    else:
        schedule["last_epoch"] = 10**9
    with pytest.raises(DataError, match=r"^x\.pth: (optimizer|lr_scheduler)"):
        state.restore(content, "x.pth")


def test_the_state_itself_is_accepted(tmp_path: Path) -> None:
    for momentum in (0.0, 0.9):
        state = new_state(momentum)
        state.save(tmp_path, {"lr": 0.1}, numbered=False)
        content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
        new_state(momentum).restore(content, "x.pth")


PLAIN = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(PLAIN)
def test_a_value_is_like_itself(value: Any) -> None:
    check_like(value, value, "x")
