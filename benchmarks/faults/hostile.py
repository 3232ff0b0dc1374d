"""Files of strangers that try to run code, to read or to overwrite what is not theirs."""

import argparse
import functools
import importlib
import io
import logging
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import numpy as np
import torch
from torch import nn

import norton_det as nd
from benchmarks.faults.campaign import Campaign, Outcome
from norton_det.checkpoint import has_spec
from norton_det.cli.main import main
from norton_det.cli.training_options import Checkpoint
from norton_det.config import read_config
from norton_det.errors import DataError, UsageError
from norton_det.models.state_dicts import read_state_dict
from norton_det.yaml_files import read_yaml

Readers = Iterator[tuple[str, Callable[[], object]]]
_SECRET = "this is nobody's business"


@dataclass(frozen=True)
class Place:
    """Where a case runs: the canary that must not appear, and a file that must stay as it is and unread."""

    folder: Path

    @property
    def canary(self) -> Path:
        """Appears where a file's code runs."""
        return self.folder / "canary"

    @property
    def treasure(self) -> Path:
        """A file of somebody else."""
        return self.folder / "treasure.txt"

    def touched(self) -> str:
        """Return what happened that must not; an empty text if nothing did."""
        if self.canary.exists():
            return "the canary was touched"
        if not self.treasure.exists() or self.treasure.read_text() != f"{_SECRET}: [\n":
            return "the file of somebody else was changed"
        return ""


class _Call:
    """Calls a function when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def _payloads(place: Place) -> dict[str, Any]:
    """Return objects that touch the canary, or the treasure, when they are unpickled."""
    touch, code = f"touch {place.canary}", f"open({str(place.canary)!r}, 'w')"
    script = place.folder / "script.py"
    script.write_text(code)
    inner = pickle.dumps(_Call(os.system, touch))
    return {
        "os.system": _Call(os.system, touch),
        "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(place.canary)]),
        "eval": _Call(eval, code),
        "exec": _Call(exec, code),
        "open": _Call(open, str(place.canary), "w"),
        "os.remove": _Call(os.remove, str(place.treasure)),
        "shutil.rmtree": _Call(shutil.rmtree, str(place.folder)),
        "pickle.loads": _Call(pickle.loads, inner),
        "runpy.run_path": _Call(runpy.run_path, str(script)),
        "Path.touch": _Call(getattr(Path, "touch"), place.canary),  # noqa: B009  as pickle names it
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "functools.partial": _Call(functools.partial(os.system, touch)),
        "importlib.import_module": _Call(importlib.import_module, "antigravity"),
        "types.SimpleNamespace": [types.SimpleNamespace(run=_Call(os.system, touch))],
        "numpy objects": np.array([_Call(os.system, touch)], dtype=object),
        "numpy.load": _Call(np.load, str(script), None, True),
        "torch.load": _Call(torch.load, str(script)),
        "torch.hub.load": _Call(torch.hub.load, "nobody/nothing", "x"),
        "a module": nn.Sequential(nn.Linear(2, 2)),
        "in a dictionary's key": {("x", _Call(os.system, touch)): 1},
    }


def _readers(path: Path) -> dict[str, Callable[[], object]]:
    return {
        "load": lambda: nd.load(path),
        "has_spec": lambda: has_spec(path),
        "read_state_dict": lambda: read_state_dict(path),
        "weights=": lambda: nd.resnet56_cifar(weights=path),
        "--resume": lambda: Checkpoint(str(path)),
        "complexity": lambda: _command("complexity", str(path)),
    }


def _command(*words: str) -> str:
    """Run a command; raise an error of its message, if it is refused."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    if code:
        raise DataError(err.getvalue().strip().splitlines()[-1])
    return out.getvalue()


def _pickled(name: str, *, zipped: bool) -> Callable[[Place], Readers]:
    def readers(place: Place) -> Readers:
        path = place.folder / "weights.pth"
        content = {"model": {"conv1.weight": torch.ones(2)}, "args": _payloads(place)[name]}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        yield from _readers(path).items()

    return readers


_YAML = {
    "apply": "rank: !!python/object/apply:os.system ['touch CANARY']",
    "new": "rank: !!python/object/new:os.system ['touch CANARY']",
    "name": "rank: !!python/name:os.system",
    "module": "rank: !!python/module:antigravity",
    "object": "rank: !!python/object:pathlib.Path {}",
    "as a key": "? !!python/object/apply:os.system ['touch CANARY']\n: 1",
    "merged": "<<: !!python/object/apply:os.system ['touch CANARY']",
    "of another document": "rank: 1\n--- !!python/object/apply:os.system ['touch CANARY']",
    "in the recipe": "recipe: {lr: !!python/object/apply:os.system ['touch CANARY']}",
}
_CONFIGS = {
    "recipe is an absolute path": "recipe: FOLDER/treasure.txt",
    "recipe with ../": "recipe: ../treasure.txt",
    "recipe is a link": "recipe: link.yaml",
    "recipe writes elsewhere": "recipe: {output_dir: FOLDER, overwrite: true}",
    "recipe goes on with a file": "recipe: {resume: FOLDER/treasure.txt}",
    "recipe asks another host": "recipe: {dist_url: 'tcp://192.0.2.1:1'}",
}
_SPECS: dict[str, dict[str, Any]] = {
    "weights are downloaded": {"arch": "resnet50", "options": {"weights": "IMAGENET1K_V2"}},
    "norms of code": {"arch": "resnet50", "options": {"norm_layer": "os.system"}},
    "a forward": {"attributes": {"forward": "x"}},
    "a class": {"attributes": {"__class__": "os.system"}},
    "hooks": {"attributes": {"_forward_hooks": {}}},
    "globals": {"attributes": {"conv1.forward.__globals__.x": 1}},
    "a method as decomposition": {"decompositions": {"conv1": {"method": "__class__", "rank": 1}}},
    "an architecture of a path": {"arch": "../../canary"},
}


def _of_yaml(name: str) -> Callable[[Place], Readers]:
    def readers(place: Place) -> Readers:
        folder = place.folder / "inside"
        folder.mkdir()
        (folder / "link.yaml").symlink_to(place.treasure)
        text = {**_YAML, **_CONFIGS}[name].replace("CANARY", str(place.canary)).replace("FOLDER", str(place.folder))
        path = folder / "config.yaml"
        path.write_text(f"arch: resnet56_cifar\ndataset: cifar10\n{text}\n")
        words = ["train-cls", "--config", str(path), "--data-path", str(folder), "--device", "cpu"]
        if name in _YAML:
            yield "read_yaml", lambda: read_yaml(path, "a config")
            yield "read_config", lambda: read_config(path)
        yield "train-cls", lambda: _command(*words)

    return readers


def _of_spec(name: str) -> Callable[[Place], Readers]:
    def readers(place: Place) -> Readers:
        spec = nd.Spec(**{"arch": "resnet56_cifar", "num_classes": 10, **_SPECS[name]})
        path = place.folder / "weights.pth"
        torch.save({"model": nd.build(nd.Spec("resnet56_cifar", 10)).state_dict(), "spec": spec.to_json()}, path)
        yield "load", lambda: nd.load(path)
        yield "complexity", lambda: _command("complexity", str(path))

    return readers


def _zip_slip(place: Place) -> Readers:
    path = place.folder / "weights.pth"
    torch.save({"conv1.weight": torch.ones(2)}, path)
    with ZipFile(path, "a") as archive:
        archive.writestr("../../canary", "x")
        archive.writestr(str(place.canary), "x")
    yield from _readers(path).items()


def _script(place: Place) -> Readers:
    path = place.folder / "weights.pth"
    with catch_warnings():
        simplefilter("ignore")  # torch calls it old
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    yield from _readers(path).items()


def _linked_output(place: Place) -> Readers:
    """Write over a link: the link is replaced, and not what it points to."""
    path = place.folder / "net.safetensors"
    path.symlink_to(place.treasure)
    spec = nd.Spec("resnet56_cifar", 10)
    yield "control", lambda: nd.save(nd.build(spec).eval(), spec, path)


def _payload_works(place: Place) -> Readers:
    """Show that the payload would touch the canary, in another process."""
    payload = pickle.dumps(_payloads(place)["os.system"])
    code = f"import pickle; pickle.loads({payload!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    if not place.canary.exists():
        raise RuntimeError("the payload does nothing")
    place.canary.unlink()
    yield "control", lambda: None


def _harmless(place: Place) -> Readers:
    path = place.folder / "weights.pth"
    torch.save({"model": {"x": torch.ones(2)}, "args": argparse.Namespace(lr=0.1, out=Path("x"))}, path)
    yield "control", lambda: read_state_dict(path)


_PAYLOADS = (
    *("os.system", "subprocess.Popen", "eval", "exec", "open", "os.remove", "shutil.rmtree", "pickle.loads"),
    *("runpy.run_path", "Path.touch", "getattr", "functools.partial", "importlib.import_module"),
    *("types.SimpleNamespace", "numpy objects", "numpy.load", "torch.load", "torch.hub.load", "a module"),
    "in a dictionary's key",
)


def _cases() -> dict[str, Callable[[Place], Readers]]:
    old = ("os.system", "eval", "numpy objects", "a module")
    return {
        "control: the payload works": _payload_works,
        "control: plain values": _harmless,
        "control: a link is replaced": _linked_output,
        **{f"pickle: {name}": _pickled(name, zipped=True) for name in _PAYLOADS},
        **{f"old pickle: {name}": _pickled(name, zipped=False) for name in old},
        **{f"YAML: {name}": _of_yaml(name) for name in _YAML},
        **{f"config: {name}": _of_yaml(name) for name in _CONFIGS},
        **{f"spec: {name}": _of_spec(name) for name in _SPECS},
        "archive with paths": _zip_slip,
        "TorchScript": _script,
    }


CASES = _cases()
_HARMLESS = {"archive with paths": ("has_spec", "read_state_dict", "--resume")}
"""What reads nothing but tensors of these."""


def run(prepared: None, index: int, random: Random, folder: Path) -> Outcome:
    """Let everything read a file that reads such files; look at what it touched."""
    name = list(CASES)[index % len(CASES)]
    place = Place(folder)
    place.treasure.write_text(f"{_SECRET}: [\n")
    for reader, read in CASES[name](place):
        problem, note = "", "read"
        try:
            read()
            if reader not in ("control", "has_spec", *_HARMLESS.get(name, ())):
                problem = "was read"
        except (DataError, UsageError) as error:
            note = str(error)
            if reader == "control":
                problem = f"was refused: {note}"
            elif "\n" in note or _SECRET in note or "weights_only" in note:
                problem = f"not one line that tells no secrets and gives no advice: {note!r}"
        problem = place.touched() or problem
        if problem:
            return Outcome(name, False, f"{reader}: {problem}")
    return Outcome(name, True, note)


CAMPAIGN = Campaign(
    name="hostile",
    title="Hostile pickles, YAML, paths and names",
    promise="no code of a file runs, nothing is downloaded, nothing outside is read or changed: no canary is touched.",
    size=len(CASES),
    quick=12,
    seconds=120,
    prepare=lambda folder: logging.getLogger("norton_det").setLevel(logging.ERROR),
    run=run,
)
