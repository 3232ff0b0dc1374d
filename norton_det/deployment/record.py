"""What was done to a network that is deployed, as data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from norton_det.errors import DataError, UsageError
from norton_det.formatting import table

FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class BlockChoice:
    """The form that one layer was given.

    Attributes:
        name: of the layer.
        milliseconds: median time of each form on the inputs that the layer gets.
        form: the fastest.
    """

    name: str
    milliseconds: Mapping[str, float]
    form: str


@dataclass(frozen=True)
class Deployment:
    """What :func:`deploy` did to a network.

    Attributes:
        blocks: the layers that have equal forms, and theirs, in the network's order.
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
        """Return a table of the layers that have forms: milliseconds of each, the choice, its share of the whole."""
        whole = self.milliseconds[self.memory_format]
        forms = sorted({form for block in self.blocks for form in block.milliseconds})
        rows = []
        for block in self.blocks:
            taken = block.milliseconds[block.form]
            cells = (f"{block.milliseconds[form]:.2f}" if form in block.milliseconds else "" for form in forms)
            rows.append((block.name, *cells, block.form, f"{taken / whole:.1%}"))
        lines = [f"{name}: {value:.2f} ms" for name, value in self.milliseconds.items()]
        return "\n".join([table(("milliseconds", *forms, "choice", "share"), rows), "", *lines])

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
            done = cls(**{**values, "blocks": tuple(BlockChoice(**block) for block in values["blocks"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"deployment cannot be read: {type(error).__name__} {error}") from None
        if done.memory_format not in FORMATS:
            raise DataError(
                f"deployment has memory_format {done.memory_format!r}; expected one of: {', '.join(FORMATS)}"
            )
        return done


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
