"""The files that are changed, and what is read of them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import norton_det as nd
from norton_det.cli.training_options import Checkpoint
from norton_det.deployment.record import deployment_of
from norton_det.models.tensor_files import read_header
from norton_det.training import TrainingState
from norton_det.training.optim import make_optimizer, make_schedule

GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "version3"
_FOLLOWS = ("norton_det", "version")


@dataclass(frozen=True)
class Read:
    """What was read of a file.

    Attributes:
        spec: as JSON values.
        tensors: by name, as in the file.
        record: of a deployment, or the rest of a checkpoint.
    """

    spec: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    record: Any = None

    def difference(self, other: "Read") -> str:
        """Say in what two files differ."""
        if self.spec != other.spec:
            return f"another spec: {[key for key in self.spec if self.spec[key] != other.spec.get(key)]}"
        if names := sorted(self.tensors.keys() ^ other.tensors.keys()):
            return f"other tensors: {names[:3]}"
        for name, tensor in self.tensors.items():
            if not torch.equal(tensor, other.tensors[name].to(tensor.dtype)):
                return f"{name} has other values"
        return "" if _plain(self.record) == _plain(other.record) else "another record"


@dataclass(frozen=True)
class Base:
    """A file that is changed.

    Attributes:
        kind: "classifier", "detector", "deployed" or "checkpoint".
        path: the file.
        reader: how it is read.
        original: what it holds.
    """

    kind: str
    path: Path
    reader: Callable[[Path], Read]
    original: Read

    @property
    def is_pickled(self) -> bool:
        """Whether it is a file of ``torch.save``."""
        return self.path.suffix == ".pth"

    def read(self, path: Path) -> Read:
        """Read a file of this kind."""
        return self.reader(path)


def make_bases(folder: Path) -> list[Base]:
    """Write the files: the golden ones of the present version, and a checkpoint of a training."""
    kinds = {"cp": "classifier", "mixed": "classifier", "deployed": "deployed", "detector": "detector"}
    bases = []
    for name, kind in kinds.items():
        path = folder / f"{name}.safetensors"
        shutil.copyfile(GOLDEN / path.name, path)
        bases.append(Base(kind, path, read_network, read_network(path)))
    net, spec = nd.load(folder / "cp.safetensors")
    _state(net.train(), replace(spec, provenance={})).save(folder, {"lr": 0.1, "epochs": 3}, numbered=False)
    path = folder / "checkpoint.pth"
    return [*bases, Base("checkpoint", path, read_checkpoint, read_checkpoint(path))]


def read_network(path: Path) -> Read:
    """Return what is loaded of a file of weights."""
    net, spec = nd.load(path)
    deployment = deployment_of(net)
    tensors = net.state_dict() if deployment is None else deployment.state
    return Read(_values(spec), without_counters(tensors), None if deployment is None else record_of(deployment))


def read_checkpoint(path: Path) -> Read:
    """Return the state of a training that is resumed from a file."""
    checkpoint = Checkpoint(str(path))
    net, spec = checkpoint.network()
    state = _state(net, spec)
    state.restore(checkpoint.content, path)
    return Read(_values(spec), without_counters(net.state_dict()), rest_of(state._content(checkpoint.args)))


def says(spec: str, tensors: Mapping[str, Tensor], record: Any) -> Read:
    """Return what a file says: its spec's JSON text, its tensors, and its record."""
    return Read(_values(nd.Spec.from_json(spec)), without_counters(tensors), record)


def rest_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training goes on with, besides network and spec."""
    names = ("optimizer", "lr_scheduler", "epoch", "step", "loss", "history", "iteration", "window", "rng", "args")
    return {name: content[name] for name in names}


def record_of(deployment: Any) -> Any:
    """Return the record of a deployment as JSON values."""
    return json.loads(deployment.to_json())


def without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the counters of norms, which files may lack."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}


def header_of(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file."""
    return dict(read_header(path))


def _values(spec: nd.Spec) -> dict[str, Any]:
    return {name: value for name, value in json.loads(spec.to_json()).items() if name not in _FOLLOWS}


def _state(net: nn.Module, spec: nd.Spec) -> TrainingState:
    """Return the state of a training after a step."""
    optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = make_schedule(optimizer, "steplr", epochs=3)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule.step()
    history = [{"epoch": 0, "lr": 0.1, "top1": 50.0}]
    return TrainingState(net, spec, optimizer, schedule, epoch=0, step=1, loss=0.5, history=history)


def _plain(value: Any) -> Any:
    """Return a value whose tensors are lists, so that it can be compared; NaN equals itself."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        plain = {key: _plain(inner) for key, inner in value.items()}
        return {
            key: inner for key, inner in plain.items() if inner is not None and inner != {}
        }  # as where it is missing
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) else value
