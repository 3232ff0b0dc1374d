"""Checks of a training checkpoint's fields, before a training goes on with them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from norton_det.errors import DataError, expect, shown
from norton_det.json_text import is_number
from norton_det.models.state_dicts import check_tensors

_MOST = 2**53  # epochs, steps
_MOST_UPDATES = 10**6  # of a schedule
Fields = Mapping[str, Any]


def check_fields(content: Fields, path: str | Path) -> None:
    """Check kind and range of the fields of a checkpoint that do not depend on the network.

    Args:
        content: of the file; no field is missing.
        path: the file, for the messages.

    Raises:
        DataError: one is wrong; the message names it.
    """

    def check(condition: bool, field: str, expected: str) -> None:
        expect(condition, f"{path}: {field}", content[field], expected)

    check(_is_whole(content["epoch"], -1), "epoch", "a whole number of at least -1")
    for field in ("step", "iteration"):
        check(_is_whole(content[field], 0), field, "a whole number of at least 0")
    check(_is_number(content["loss"]) and math.isfinite(content["loss"]), "loss", "a finite number")
    for field in ("model", "optimizer", "lr_scheduler", "args", "window"):
        check(isinstance(content[field], Mapping), field, "values by name")
    for field in ("scaler", "model_ema"):
        check(content[field] is None or isinstance(content[field], Mapping), field, "values by name, or nothing")
    check(all(map(_is_number, content["window"].values())), "window", "numbers by name")
    check(isinstance(content["spec"], str), "spec", "a text")
    check(_is_random_state(content["rng"]), "rng", "the state of a random generator")
    check(content["cuda_rng"] is None or _is_random_state(content["cuda_rng"]), "cuda_rng", "such a state, or nothing")
    check(isinstance(content["history"], list), "history", "a list of lines")
    for number, line in enumerate(content["history"]):
        where = f"{path}: history[{number}]"
        expect(isinstance(line, Mapping) and _is_whole(line.get("epoch"), 0), where, line, "a line of an epoch")
        for name, value in line.items():
            expect(value is None or _is_number(value), f"{where}[{name!r}]", value, "a number")


def check_optimizer(values: Fields, optimizer: Optimizer, path: str | Path) -> None:
    """Check the state of an optimizer against the one that it is for: groups, options, and shapes of tensors.

    Raises:
        DataError: it does not fit; the message names what.
    """
    own = optimizer.state_dict()
    where = f"{path}: optimizer"
    groups, state = values.get("param_groups"), values.get("state")
    expect(isinstance(groups, list) and len(groups) == len(own["param_groups"]), where, groups, "the same groups")
    for number, (group, mine) in enumerate(zip(groups or (), own["param_groups"], strict=True)):
        check_like(group, mine, f"{where} group {number}")
    expect(isinstance(state, Mapping), f"{where} state", state, "values by parameter")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in dict(state or {}).items():
        place = f"{where} state[{index!r}]"
        known = _is_whole(index, 0) and index < len(parameters) and isinstance(kept, Mapping)
        expect(known, place, kept, f"values of one of {len(parameters)} parameters")
        tensors = {str(name): value for name, value in kept.items() if isinstance(value, Tensor)}
        check_tensors(tensors, place)
        for name, value in kept.items():
            shapes = ((), parameters[index].shape)
            good = value is None or _is_number(value)
            if isinstance(value, Tensor):
                good = value.shape in shapes and not value.is_complex() and bool(value.isfinite().all())
            if not good:
                text = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
                raise DataError(f"{place} {name} is {text}; expected finite numbers of shape {tuple(shapes[1])}")


def check_schedule(values: Fields, schedule: Any, path: str | Path) -> None:
    """Check the state of a learning-rate schedule against the one that it is for; None: only how far it is.

    Raises:
        DataError: a value is of another kind; the message names it.
    """
    where = f"{path}: lr_scheduler"
    if schedule is not None:
        methods = [name for name in values if callable(getattr(type(schedule), str(name), None))]
        expect(not methods, where, methods, "values by name")
        check_like(values, schedule.state_dict(), where)
    last: Any = values.get("last_epoch")
    expect(_is_whole(last, 0) and last <= _MOST_UPDATES, f"{where} last_epoch", last, "a number of updates")


def check_like(value: Any, own: Any, where: str) -> None:
    """Check that a plain value is of the kind that another one is, also inside; more keys are well, numbers finite.

    Raises:
        DataError: it is not.
    """
    if isinstance(own, Mapping):
        expect(isinstance(value, Mapping), where, value, "values by name")
        if missing := [key for key in own if key not in value and not str(key).isdigit()]:
            raise DataError(f"{where} lacks {missing[0]!r}")
        for key in own.keys() & value.keys():
            check_like(value[key], own[key], f"{where}[{key!r}]")
    elif isinstance(own, (list, tuple)):
        fits = isinstance(value, (list, tuple)) and len(value) == len(own)
        expect(fits, where, value, f"{len(own)} values")
        for i, (inner, mine) in enumerate(zip(value, own, strict=True)):
            check_like(inner, mine, f"{where}[{i}]")
    elif isinstance(own, bool) or own is None or isinstance(own, str):
        optional = own is None and (value is None or isinstance(value, bool))
        expect(optional or (own is not None and type(value) is type(own)), where, value, f"a value like {own!r}")
    elif _is_number(own):
        finite = _is_number(value) and math.isfinite(value)
        whole = isinstance(value, int) or not isinstance(own, int)
        expect(finite and whole, where, value, f"a number like {own!r}")


def _is_random_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1 and value.numel() <= 2**16


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def _is_number(value: Any) -> bool:
    return is_number(value) and (isinstance(value, float) or abs(value) <= _MOST)
