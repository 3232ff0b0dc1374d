"""One value for a network: its module, the spec that describes it, and its architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from norton_det.channels.plan import ChannelPlan
from norton_det.models import Architecture
from norton_det.models.feature_maps import FeatureMaps
from norton_det.spec import Spec
from norton_det.structure.history import with_step


@dataclass(frozen=True)
class Network:
    """A network with its spec and architecture. It is made once, where a name is given, and passed on.

    Attributes:
        module: the network itself, on any device (on "meta", only shapes are known).
        spec: describes ``module``.
        architecture: the one that ``spec`` names.
    """

    module: nn.Module
    spec: Spec
    architecture: Architecture

    @property
    def plan(self) -> ChannelPlan:
        """The channel plan, each group as wide as it is in ``module``."""
        plan = self.architecture.plan
        return replace(plan, widths={**plan.widths, **self.spec.widths})

    def handed_out(self) -> tuple[nn.Module, Spec]:
        """Return module and spec, as the public functions do; a backbone has its spec as an attribute as well."""
        if isinstance(self.module, FeatureMaps):
            self.module.spec = self.spec
        return self.module, self.spec

    def with_step(self, name: str, step: Mapping[str, Any]) -> "Network":
        """Return the network with a step of its history, its scope and rounding too, added to the provenance."""
        scope, multiple = self.architecture.scope, self.architecture.round_to
        chosen = {**({} if scope is None else {"scope": scope}), **({} if multiple == 1 else {"round_to": multiple})}
        return replace(self, spec=with_step(self.spec, name, {**chosen, **step}))
