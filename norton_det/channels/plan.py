"""Channel plans: which channels of a network must be pruned together.

A plan says, as data, which layers write and read which *channel group*: the layers of a residual stage all write one
group, so that they keep the same channels. Which channels are kept is chosen by a pruning criterion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layer:
    """One layer of a channel plan.

    Attributes:
        name: the submodule's name.
        reads: the groups that make up its input channels, concatenated in this order. Empty: an input that never
            changes (the image).
        writes: the group of its output channels. None: they never change (a classifier), unless ``in_place``.
        in_place: the layer's output channels are its input channels (a batch norm); it writes no group of its own.
        spatial: number of spatial positions of each channel that a linear layer reads one after another: 49 for
            flattened 7x7 maps.

    Example:
        >>> from norton_det import Layer
        >>> Layer("conv2", ("stem",), "inner").writes
        'inner'
        >>> Layer.norm("bn2", ("inner",)).in_place
        True
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: str | None = None
    in_place: bool = False
    spatial: int = 1

    @classmethod
    def norm(cls, name: str, reads: tuple[str, ...]) -> "Layer":
        """Return a layer that works in place on the groups that it reads, a batch norm for example."""
        return cls(name, reads, in_place=True)


@dataclass(frozen=True)
class ChannelPlan:
    """Which layers of a network write and read which channel group.

    Attributes:
        widths: full number of channels of each group.
        layers: the layers, in the order of computation.
        separate: groups with several writers whose outputs are never added: they are kept alike because the same
            layers read each of them (the outputs of a feature pyramid).

    Example:
        >>> from norton_det import ChannelPlan, Layer
        >>> plan = ChannelPlan({"hidden": 8}, (Layer("conv", (), "hidden"), Layer("fc", ("hidden",))))
        >>> plan.writers("hidden")
        ['conv']
    """

    widths: Mapping[str, int]
    layers: tuple[Layer, ...]
    separate: frozenset[str] = frozenset()

    def writers(self, group: str) -> list[str]:
        """Return the names of the layers that write ``group``."""
        return [layer.name for layer in self.layers if layer.writes == group]

    def inside(self, prefix: str) -> "ChannelPlan":
        """Return the plan of a network that holds this one under ``prefix`` (``"backbone.body."``)."""
        layers = tuple(replace(layer, name=prefix + layer.name) for layer in self.layers)
        return replace(self, layers=layers)
