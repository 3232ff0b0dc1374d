"""What an architecture declares beside its network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum

from norton_det.channels.plan import ChannelPlan
from norton_det.registry import Registry


@dataclass(frozen=True)
class Architecture:
    """A standard network, and what compression has to know about it.

    Attributes:
        builder: makes the dense network: ``builder(num_classes=..., **options)``.
        plan: its channel plan at full width.
        rate_order: for each entry of a list of pruning rates, what it is called and the groups that it narrows.
        num_classes: the default number of classes.
        image_size: side of the square image for which complexity is stated.
        classifier: name of the linear layer whose outputs are the classes.
        kept_dense: k x k convolutions of the plan that are decomposed only when named explicitly, with the reason.
        keeps_width: groups whose layer is made as wide as what it reads; their rates are of that width, once what they
            read has been narrowed.
        weights: torchvision's published weights for it.
        options_of: network -> the ``options`` that rebuild it, where the builder has any.
    """

    builder: Callable[..., nn.Module]
    plan: ChannelPlan
    rate_order: tuple[tuple[str, tuple[str, ...]], ...]
    num_classes: int
    image_size: int
    classifier: str
    kept_dense: dict[str, str] = field(default_factory=dict)
    keeps_width: frozenset[str] = frozenset()
    weights: type[WeightsEnum] | None = None
    options_of: Callable[[nn.Module], dict[str, Any]] = lambda net: {}

    def build(self, num_classes: int, **options: Any) -> nn.Module:
        """Return the dense network with its usual random initialisation."""
        return self.builder(num_classes=num_classes, **options)


ARCHITECTURES: Registry[Architecture] = Registry("architecture")
