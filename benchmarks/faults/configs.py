"""Configs, rates, ranks and recipes are mutated: what is accepted builds, and can be trained."""

import copy
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from torch import nn

import norton_det as nd
from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.values import junk, nested
from norton_det.cli.config_defaults import parse_arguments
from norton_det.cli.main import parser_of
from norton_det.cli.training_options import check_training
from norton_det.cli.training_state import make_state
from norton_det.config import config_files, read_config
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.notation import parse_ranks, parse_rates
from norton_det.spec import Spec
from norton_det.yaml_files import read_yaml

_MOST_SECONDS = 2.0
_TEXTS = (
    *("[0.]*999999999", "[0.]*9999", "[1e-400]*30", "[0.1", "[0.1]*-1", "[nan]*30", "[inf]*30", "[1]*30", "0.1", "[]"),
    *("[0.1]+[0.1]*29", "[0.3]*30", "[0x1]", "[1_0]*30", "[٣]*30", "[0.5]*30;import os", "[" * 900, "[0.1]*30" * 999),
    *("[2]*27", "[2x3]*27", "[0]*27", "[999999999]*27", "[2]*27+[x]", "[1" + "0" * 5000 + "]", "[2]*" + "9" * 5000),
)
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, 0.5, 1e-4, -1, -1e-9, 10**400, 1e400, float("nan"), True, "abc", "1", "1e-3", [1], [16, 22], None),
    *(2**31, 10**9, "auto", {}, "٣", "1_0", " 1", "0x10", 1.5, [], ["a"], "nan", -0.0, 1e308, "inf"),
)
_WORDS = ("adamw", "sgd", "sgd_nesterov", "rmsprop", "steplr", "cosineannealinglr", "exponentiallr", "multisteplr")
_DOCUMENTS = (
    "arch: &a [*a]",
    "a: " + "{a: " * 500,
    "a: &a [x]\nb: *a\n---\nc: 1",
    "arch: !!python/object/apply:os.system [true]\n",
    "arch: resnet56_cifar\narch: vgg16_bn_cifar\n",
    "arch: 2026-13-45\ndataset: !!timestamp 2026-13-45\n",
    "? [a]\n: 1\n",
    "\x00\x01",
    "arch: '\ud800'",
    "{",
    "- 1",
    "",
)


@dataclass(frozen=True)
class _Prepared:
    configs: Mapping[str, dict[str, Any]]
    parsers: Mapping[str, Any]


def prepare(folder: Path) -> _Prepared:
    """Read the configs of the package, with their recipes; build each architecture once."""
    logging.getLogger("norton_det").setLevel(logging.ERROR)
    configs = {}
    for name, path in config_files().items():
        values = read_yaml(path, "a config")
        configs[name] = {**values, "recipe": dict(read_config(path).recipe)}
        nd.build(read_config(path).spec(), "meta")
    return _Prepared(configs, {name: parser_of(name) for name in ("train-cls", "train-det")})


def run(prepared: _Prepared, index: int, random: Random, folder: Path) -> Outcome:
    """Change a config, read it, and use what is accepted."""
    kinds = ("control", "field", "recipe", "rates", "document", "field", "recipe", "two fields", "misspelled", "recipe")
    kind = kinds[index % len(kinds)]
    name = random.choice([*prepared.configs])
    values = copy.deepcopy(prepared.configs[name])
    if kind == "rates":
        return _of_rates(random)
    text = random.choice(_DOCUMENTS) if kind == "document" else ""
    what = _change(kind, values, random)
    path = folder / "config.yaml"
    text = text or _dumped(values)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    began = time.process_time()
    problem, note = _used(path, prepared, kind)
    seconds = time.process_time() - began
    if seconds > _MOST_SECONDS:
        problem = problem or f"takes {seconds:.1f} s"
    kind = {"control": "control: a published row", "document": "no config"}.get(kind, f"config: {kind}")
    return Outcome(kind, not problem, f"{name}, {what}: {problem or note}" if problem or note else "")


def _dumped(values: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(dict(values), sort_keys=False, width=1000)
    except (yaml.YAMLError, RecursionError, ValueError):  # what YAML cannot write, JSON may
        return json.dumps(values)


def _change(kind: str, values: dict[str, Any], random: Random) -> str:
    if kind in ("field", "two fields"):
        fields = [random.choice([*values, "rank", "rates", "decomposition", "scope", "round_to"]) for _ in kind.split()]
        for field in fields:
            values[field] = _value(field, values, random)
        return ", ".join(f"{field}={str(values[field])[:60]!r}" for field in fields)
    if kind == "recipe":
        recipe = values["recipe"]
        flags = [
            "momentum",
            "weight_decay",
            "lr_steps",
            "lr_gamma",
            "lr_step_size",
            "clip_grad_norm",
            "seed",
            "workers",
        ]
        flags += ["model_ema", "model_ema_decay", "print_freq", "patience", "amp", "opt", "lr_scheduler", "batch_size"]
        flags += ["output_dir", "overwrite", "label_smoothing", "lr_min", "lr_warmup_epochs", "accumulate", "device"]
        for _ in range(random.choice([1, 1, 2])):
            flag = random.choice([*recipe, *flags])
            recipe[flag] = random.choice([*_NUMBERS, random.choice(_WORDS), junk(random)])
        return f"{flag}={str(recipe[flag])[:60]!r}"
    if kind == "misspelled":
        place = random.choice([values, values["recipe"]])
        key = random.choice([*place])
        at = random.randrange(len(key))
        place[key[:at] + key[at + 1 :]] = place.pop(key)
        return f"{key} without letter {at}"
    return kind


def _value(field: str, values: Mapping[str, Any], random: Random) -> Any:
    names = [*ARCHITECTURES, "cp", "tucker2", "svd", "pabs", "norm", "backbone", "detector", "cifar10", "coco", "x"]
    layers: dict[str, Any] = {
        random.choice(["conv1", "*", "layer1.*", "features.0", "a*b*" * 20, "", "fc"]): random.choice(_NUMBERS)
    }
    own: dict[str, list[Any]] = {
        "rank": [*_NUMBERS, *_TEXTS, layers, layers],
        "rates": [*_TEXTS],
        "round_to": [*_NUMBERS],
    }
    deep = nested(random.choice([15, 60, 400]))
    return random.choice([*own.get(field, names), junk(random), deep, values.get(random.choice([*values]))])


def _used(path: Path, prepared: _Prepared, kind: str) -> tuple[str, str]:
    """Return which promise is broken, if one is, and how a config was refused, if it was."""
    controlled = kind == "control"
    try:
        config = read_config(path)
    except DataError as error:
        return _refused(error, controlled, path)
    try:
        _build(config.spec())
    except Exception as error:
        return f"was accepted; building: {type(error).__name__}: {error}", ""
    command = "train-det" if config.arch in _names("train-det", prepared) else "train-cls"
    words = ["--config", str(path), "--data-path", str(path.parent), "--device", "cpu"]
    try:
        args = parse_arguments(copy.deepcopy(prepared.parsers[command]), words)
        check_training(args)
    except (DataError, UsageError) as error:
        return _refused(error, controlled, path)
    try:
        lr = 0.01 if args.lr == "auto" else args.lr
        args.lr = lr
        state = make_state(args, nn.Linear(2, 2), Spec("none", 2), torch.device("cpu"), images=args.batch_size)
        state.model(torch.ones(1, 2)).sum().backward()
        state.optimizer.step()
        state.schedule.step()
    except Exception as error:
        return f"was accepted; training: {type(error).__name__}: {error}", ""
    return "", ""


def _build(spec: Spec) -> None:
    net = nd.build(spec, "meta")
    if sum(parameter.numel() for parameter in net.parameters()) > 10**9:
        raise MemoryError("more than a billion parameters")


def _names(command: str, prepared: _Prepared) -> list[str]:
    (action,) = (action for action in prepared.parsers[command]._actions if action.dest == "model")
    return list(action.choices)


def _refused(error: Exception, controlled: bool, path: Path) -> tuple[str, str]:
    text = str(error)
    if controlled:
        return f"was refused: {text}", ""
    if "\n" in text or len(text) > 5000:
        return f"not one line: {text!r}", ""
    if isinstance(error, DataError) and not text.startswith(str(path)):
        return f"does not begin with the file: {text}", ""
    return "", f"refused: {text}"


def _of_rates(random: Random) -> Outcome:
    text = random.choice(_TEXTS)
    if random.random() < 0.5:
        letters = [*text[:2000]]
        for _ in range(random.choice([1, 2, 5])):
            letters[random.randrange(len(letters))] = random.choice([*"[]+*.,x0123456789e- \n\x00", "٣", "∞"])
        text = "".join(letters)
    began, problem, note = time.process_time(), "", ""
    for read in (parse_rates, parse_ranks):
        try:
            values: Any = read(text)
            good = all(0 <= one < 1 for one in values) if read is parse_rates else len(values) <= 10_000
            problem = problem or ("" if good else f"gave {values[:3]}")
        except UsageError as error:
            note = str(error)
            problem = problem or ("not one line" if "\n" in note or len(note) > 500 else "")
    if time.process_time() - began > _MOST_SECONDS:
        problem = problem or f"takes {time.process_time() - began:.1f} s"
    return Outcome("rates and ranks", not problem, f"{text[:40]!r}: {problem or note}")


CAMPAIGN = Campaign(
    name="configs",
    title="Mutated configs, rates, ranks and recipes",
    promise="refused in one line that names the file and the field, or accepted: then the network builds, and the "
    "training has an optimizer and a schedule that take a step. Nothing takes more than 2 s of the processor; the "
    "published rows are accepted.",
    size=10_000,
    quick=30,
    seconds=120,
    prepare=prepare,
    run=run,
)
