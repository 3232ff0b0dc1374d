"""The record of a deployment, as data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.deployment.precision import LOWER
from norton_det.errors import DataError, UsageError
from norton_det.formatting import table

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
        try:
            values = json.loads(text)
            blocks = tuple(_block_choice(block) for block in values["blocks"])
            record = cls(**{**values, "blocks": blocks})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"deployment cannot be read: {type(error).__name__} {error}") from None
        if record.memory_format not in MEMORY_FORMATS:
            raise DataError(
                f"deployment has memory_format {record.memory_format!r}; expected one of: {', '.join(MEMORY_FORMATS)}"
            )
        if record.dtype not in (None, *LOWER):
            raise DataError(f"deployment has dtype {record.dtype!r}; expected one of: {', '.join(LOWER)}")
        return record


def _block_choice(values: dict[str, Any]) -> BlockChoice:
    # Files without a version call the implementation "form".
    named = {"implementation" if name == "form" else name: value for name, value in values.items()}
    return BlockChoice(**named)


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
