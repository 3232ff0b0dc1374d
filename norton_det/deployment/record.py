"""The record of a deployment, as data."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.deployment.precision import LOWER
from norton_det.errors import UsageError, expect
from norton_det.formatting import table
from norton_det.json_text import is_number, json_object, make_record

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
DEPLOYED = "is deployed, for inference only: batch norms are folded, so it can be neither trained nor compressed"


@dataclass(frozen=True)
class BlockChoice:
    """The implementation chosen for one layer.

    Attributes:
        name: of the layer.
        milliseconds: median time of each implementation on inputs of the layer's shapes.
        implementation: the fastest.
    """

    name: str
    milliseconds: Mapping[str, float]
    implementation: str


@dataclass(frozen=True)
class Deployment:
    """What :func:`~norton_det.deployment.deploy.deploy` did to a network.

    Attributes:
        blocks: the layers that have equal implementations, with the choices, in the network's order.
        memory_format: of the parameters: "contiguous" or "channels_last".
        folded: folded batch norm -> the layer into which it was folded.
        unchanged: what stays as it was -> the reason: batch norms that cannot be folded, layers whose replacement would
            change the outputs.
        milliseconds: median time of the whole network on the example, by name: "given" is the original network in
            evaluation mode, the others are the deployed one in each memory format; with lower precision, "float32" is
            the same in float32.
        difference: largest difference of the outputs on the example, relative to the largest value; None if it was not
            compared, as by earlier releases. With lower precision it is the error of that.
        state: the tensors of the network with its norms folded and its layers not yet replaced, as in a file.
        dtype: lower precision in which it computes: "bfloat16" or "float16". None: that of its parameters.
    """

    blocks: tuple[BlockChoice, ...]
    memory_format: str
    folded: Mapping[str, str]
    milliseconds: Mapping[str, float]
    unchanged: Mapping[str, str] = field(default_factory=dict)
    difference: float | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    dtype: str | None = None

    def __str__(self) -> str:
        """Return a table: milliseconds of each layer's implementations, the choice, its fraction of the whole time."""
        whole = self.milliseconds[self.memory_format]
        implementations = sorted({implementation for block in self.blocks for implementation in block.milliseconds})
        rows = []
        for block in self.blocks:
            times = (f"{block.milliseconds[i]:.2f}" if i in block.milliseconds else "" for i in implementations)
            fraction = block.milliseconds[block.implementation] / whole
            rows.append((block.name, *times, block.implementation, f"{fraction:.1%}"))
        lines = [f"{name}: {value:.2f} ms" for name, value in self.milliseconds.items()]
        lines += ["", f"{len(self.folded)} batch norms folded"]
        lines += [] if self.dtype is None else [f"computes in {self.dtype}, takes and returns float32"]
        lines += (
            [] if self.difference is None else [f"outputs differ by {self.difference:.1e}, relative to the largest"]
        )
        lines += [f"{name} stays as it is: {reason}" for name, reason in self.unchanged.items()]
        return "\n".join([table(("milliseconds", *implementations, "choice", "fraction"), rows), "", *lines])

    def to_json(self) -> str:
        """Return all but ``state`` as JSON text."""
        return json.dumps({**asdict(replace(self, state={})), "state": {}})

    @classmethod
    def from_json(cls, text: str) -> "Deployment":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: the text is not such a record.
        """
        values = json_object(text, "deployment")
        blocks: Any = values.get("blocks")
        expect(isinstance(blocks, list), "deployment field blocks", blocks, "a list")
        choices = tuple(_block_choice(block, f"deployment field blocks[{i}]") for i, block in enumerate(blocks))
        record = make_record(cls, {**values, "blocks": choices}, "deployment")
        _check_record(record)
        return record


def _block_choice(values: Any, where: str) -> BlockChoice:
    expect(isinstance(values, dict), where, values, "an object")
    # Files without a version call the implementation "form".
    named = {"implementation" if name == "form" else name: value for name, value in values.items()}
    choice = make_record(BlockChoice, named, where)
    expect(isinstance(choice.name, str), f"{where} name", choice.name, "a text")
    _check_times(f"{where} milliseconds", choice.milliseconds)
    timed = isinstance(choice.implementation, str) and choice.implementation in choice.milliseconds
    expect(timed, f"{where} implementation", choice.implementation, f"one of: {', '.join(choice.milliseconds)}")
    return choice


def _check_record(record: Deployment) -> None:
    expect(record.state == {}, "deployment field state", record.state, "nothing")
    for name, texts in (("folded", record.folded), ("unchanged", record.unchanged)):
        good = isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())
        expect(good, f"deployment field {name}", texts, "texts by name")
    _check_times("deployment field milliseconds", record.milliseconds)
    expect(_is_time(record.difference, optional=True), "deployment field difference", record.difference, "a number")
    formats = isinstance(record.memory_format, str) and record.memory_format in MEMORY_FORMATS
    expect(formats, "deployment field memory_format", record.memory_format, f"one of: {', '.join(MEMORY_FORMATS)}")
    timed = record.memory_format in record.milliseconds
    expect(timed, "deployment field milliseconds", record.milliseconds, f"one of {record.memory_format}")
    dtypes = record.dtype is None or (isinstance(record.dtype, str) and record.dtype in LOWER)
    expect(dtypes, "deployment field dtype", record.dtype, f"one of: {', '.join(LOWER)}")


def _check_times(where: str, times: Any) -> None:
    good = isinstance(times, dict) and all(map(_is_time, times.values()))
    expect(good, where, times, "numbers above 0 by name")


def _is_time(value: Any, *, optional: bool = False) -> bool:
    if value is None or value == 0:
        return optional
    return is_number(value) and 0 < value < math.inf


def deployment_of(net: object) -> Deployment | None:
    """Return the record of a deployed network, None if ``net`` is not deployed."""
    record = getattr(net, "deployment", None)
    return record if isinstance(record, Deployment) else None


def refuse_deployed(net: nn.Module) -> None:
    """Check that a network is not deployed.

    Raises:
        UsageError: it is.
    """
    if deployment_of(net):
        raise UsageError(f"model {DEPLOYED}; expected the network before norton_det.deploy")
