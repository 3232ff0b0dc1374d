"""What was done to a network that is deployed, as data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.errors import DataError, UsageError
from norton_det.formatting import table

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class BlockChoice:
    """The implementation that one layer was given.

    Attributes:
        name: of the layer.
        milliseconds: median time of each implementation on the inputs that the layer gets.
        implementation: the fastest.
    """

    name: str
    milliseconds: Mapping[str, float]
    implementation: str


@dataclass(frozen=True)
class Deployment:
    """What :func:`deploy` did to a network.

    Attributes:
        blocks: the layers that have equal implementations, and theirs, in the network's order.
        memory_format: of the parameters: "contiguous" or "channels_last".
        folded: batch norms that are gone, by the layer into which each was folded.
        milliseconds: median time of the whole on the example, by name: "given" is the network as it came (in evaluation
            mode), the others are the deployed one in each memory format.
        state: the tensors of the network with its norms folded and its layers as they were: what a file holds.
    """

    blocks: tuple[BlockChoice, ...]
    memory_format: str
    folded: Mapping[str, str]
    milliseconds: Mapping[str, float]
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        """Return a table: milliseconds of each layer's implementations, the choice, and its fraction of the whole."""
        whole = self.milliseconds[self.memory_format]
        implementations = sorted({implementation for block in self.blocks for implementation in block.milliseconds})
        rows = []
        for block in self.blocks:
            taken = block.milliseconds[block.implementation]
            cells = (
                f"{block.milliseconds[implementation]:.2f}" if implementation in block.milliseconds else ""
                for implementation in implementations
            )
            rows.append((block.name, *cells, block.implementation, f"{taken / whole:.1%}"))
        lines = [f"{name}: {value:.2f} ms" for name, value in self.milliseconds.items()]
        return "\n".join([table(("milliseconds", *implementations, "choice", "share"), rows), "", *lines])

    def to_json(self) -> str:
        """Return all but ``state`` as JSON text."""
        return json.dumps({**asdict(replace(self, state={})), "state": {}})

    @classmethod
    def from_json(cls, text: str) -> "Deployment":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: it did not.
        """
        try:
            values = json.loads(text)
            blocks = tuple(_block_choice(block) for block in values["blocks"])
            done = cls(**{**values, "blocks": blocks})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"deployment cannot be read: {type(error).__name__} {error}") from None
        if done.memory_format not in MEMORY_FORMATS:
            raise DataError(
                f"deployment has memory_format {done.memory_format!r}; expected one of: {', '.join(MEMORY_FORMATS)}"
            )
        return done


def _block_choice(values: dict[str, Any]) -> BlockChoice:
    # Files without a version call the implementation "form".
    named = {"implementation" if name == "form" else name: value for name, value in values.items()}
    return BlockChoice(**named)


def deployment_of(net: object) -> Deployment | None:
    """Return what :func:`deploy` did to ``net``, None if it is not deployed."""
    done = getattr(net, "deployment", None)
    return done if isinstance(done, Deployment) else None


DEPLOYED = "is deployed, for inference only: batch norms are folded, so it can be neither trained nor compressed"


def refuse_deployed(net: nn.Module) -> None:
    """Check that a network is not deployed.

    Raises:
        UsageError: it is.
    """
    if deployment_of(net):
        raise UsageError(f"model {DEPLOYED}; expected the network before norton_det.deploy")
