"""What an architecture declares beside its network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn
from torchvision.models import WeightsEnum

from norton_det.channels.plan import ChannelPlan
from norton_det.errors import UsageError, shown
from norton_det.models.tasks import Classification, Task
from norton_det.registry import Registry
from norton_det.spec import MOST


class RateEntry(NamedTuple):
    """One entry of an architecture's list of pruning rates: its name, and the channel groups that it narrows.

    Example:
        >>> from norton_det import RateEntry
        >>> RateEntry("layer1.0", ("layer1.0.conv1", "layer1.0.conv2")).name
        'layer1.0'
    """

    name: str
    groups: tuple[str, ...]


class Scope(NamedTuple):
    """A part of a network that is compressed: the prefix of the names of its layers, and its pruning rates in order.

    Example:
        >>> import norton_det as nd
        >>> scopes = nd.models.ARCHITECTURES["fasterrcnn_cpresnet50_fpn"].scopes
        >>> {name: (scope.layers, len(scope.rates)) for name, scope in scopes.items()}
        {'backbone': ('backbone.body.', 20), 'detector': ('', 25)}
    """

    layers: str
    rates: tuple[RateEntry, ...]


@dataclass(frozen=True)
class Architecture:
    """A standard network, and what compression has to know about it.

    Attributes:
        name: under which it is registered.
        builder: makes the dense network: ``builder(num_classes=..., **options)``.
        plan: its channel plan at full width.
        rate_order: the entries of a list of pruning rates, in order.
        num_classes: the default number of classes; 0 for a network without a classifier, as a backbone.
        image_size: side in pixels of the square image at which complexity is stated.
        classifier: name of the linear layer whose outputs are the classes; "" where there is none.
        dataset: name of the data set that the network is meant for: cifar10, imagenet, coco or coco_kp.
        task: what the network does, and what follows from it.
        kept_dense: k x k convolutions of the plan that are decomposed only when named explicitly, with the reason.
        keeps_width: groups whose layer is made as wide as what it reads; their rates are of that width, once what they
            read has been narrowed.
        weights: torchvision's published weights for it.
        options_of: network -> the ``options`` that rebuild it; None where the builder has none.
        trained_options: options of the builder that are another default where weights are given.
        scopes: by name, the parts of the network that can be compressed, where it is not always all of it.
        within: prefix of the names of the layers that are compressed: ``rate_order`` and this are those of the scope
            that was chosen, at first of the default one.
        round_to: widths and ranks that are chosen are multiples of it (:meth:`rounding_to`).

    Example:
        >>> import norton_det as nd
        >>> plan = nd.ChannelPlan({"hidden": 8}, (nd.Layer("0", (), "hidden"), nd.Layer("4", ("hidden",))))
        >>> rates = (nd.RateEntry("hidden", ("hidden",)),)
        >>> small = nd.Architecture("small", lambda num_classes: None, plan, rates, 10, 32, "4", dataset="cifar10")
        >>> small.task.name
        'classification'

        :func:`register_architecture` shows the rest.
    """

    name: str
    builder: Callable[..., nn.Module]
    plan: ChannelPlan
    rate_order: tuple[RateEntry, ...]
    num_classes: int
    image_size: int
    classifier: str
    dataset: str
    task: Task = field(default_factory=Classification)
    kept_dense: dict[str, str] = field(default_factory=dict)
    keeps_width: frozenset[str] = frozenset()
    weights: type[WeightsEnum] | None = None
    options_of: Callable[[nn.Module], dict[str, Any]] | None = None
    trained_options: Mapping[str, Any] = field(default_factory=dict)
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    within: str = ""
    round_to: int = 1

    @property
    def scope(self) -> str | None:
        """The name of the scope that is chosen; None where the architecture has none."""
        return next((name for name, scope in self.scopes.items() if scope.layers == self.within), None)

    def scoped(self, name: str | None) -> "Architecture":
        """Return the architecture with one of its scopes chosen; None leaves it at its present one.

        Raises:
            UsageError: it has no such scope.
        """
        if name is None:
            return self
        if not self.scopes:
            raise UsageError(f"scope is {name!r}; {self.name} has none: all of it is compressed")
        if name not in self.scopes:
            raise UsageError(f"unknown scope {name!r} of {self.name}; expected one of: {', '.join(self.scopes)}")
        scope = self.scopes[name]
        return replace(self, within=scope.layers, rate_order=scope.rates)

    def rounding_to(self, multiple: int) -> "Architecture":
        """Return the architecture with widths and ranks in multiples, as the kernels of a processor want them.

        What is chosen is rounded down, but never to 0; what stays whole is not rounded.

        Raises:
            UsageError: ``multiple`` is below 1.
        """
        if multiple < 1:
            raise UsageError(f"round_to is {shown(multiple)}; expected at least 1")
        if multiple > MOST:
            raise UsageError(f"round_to is {shown(multiple)}; expected at most {MOST:,}")
        return replace(self, round_to=multiple)

    def build(self, num_classes: int | None = None, **options: Any) -> nn.Module:
        """Return the dense network with its usual random initialisation."""
        return self.builder(num_classes=num_classes or self.num_classes, **options)


ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def register_architecture(architecture: Architecture) -> Architecture:
    """Make an architecture known under its name, to :func:`norton_det.compress` and all else, and return it.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import torch
        >>> import norton_det as nd
        >>> from torch import nn
        >>> class Small(nn.Sequential):
        ...     def __init__(self, num_classes):
        ...         layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        ...         super().__init__(*layers, nn.Linear(8, num_classes))
        >>> plan = nd.ChannelPlan({"hidden": 8}, (nd.Layer("0", (), "hidden"), nd.Layer("4", ("hidden",))))
        >>> rates = (nd.RateEntry("hidden", ("hidden",)),)
        >>> architecture = nd.Architecture("small", Small, plan, rates, 10, 32, classifier="4", dataset="cifar10")
        >>> _ = nd.register_architecture(architecture)
        >>> net, spec = nd.compress(Small(10), arch="small", rank=1, rates=[0.5])
        >>> net(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    return ARCHITECTURES.register(architecture.name, architecture)


def classifiers() -> tuple[str, ...]:
    """Return the names of the architectures that classify images, in alphabetical order."""
    return tuple(name for name in ARCHITECTURES if ARCHITECTURES[name].task.name == Classification.name)
