"""The limits that an allocation keeps, and what its choices cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.models import Architecture
from norton_det.search.latency import LatencyModel
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network

Layers = Mapping[str, DecomposedLayer]


class Limits:
    """A budget for the networks of an architecture, with the models that tell what they cost.

    Args:
        budget: what is bounded.
        architecture: with the scope that is compressed.
        spec: of the dense network; None: the architecture's default number of classes.
        options: methods and ranks of each layer that may be asked for; they are timed where the latency is bounded.
        latency: of the architecture's networks; None makes it where the latency is bounded.

    Attributes:
        targets: field of the costs -> its limit.
    """

    def __init__(
        self,
        budget: Budget,
        architecture: Architecture,
        spec: Spec | None = None,
        options: Mapping[str, Sequence[DecomposedLayer] | Mapping[DecomposedLayer, float]] | None = None,
        latency: LatencyModel | None = None,
    ) -> None:
        self.dense = build_network(spec or Spec(architecture.name, architecture.num_classes), architecture, "meta")
        self.model, self.latency = CostModel(architecture, self.dense.spec), latency
        if budget.timed and latency is None:
            on_cpu = build_network(self.dense.spec, architecture)
            self.latency = LatencyModel(self.model, on_cpu, options={n: list(o) for n, o in (options or {}).items()})
        self.targets = budget.targets(self.latency)
        self._of_layers: dict[Any, dict[DecomposedLayer | None, dict[str, float]]] = {}

    def costs(self, layers: Layers, widths: Mapping[str, Any]) -> dict[str, Any]:
        """Return the bounded costs; arguments as of :meth:`norton_det.cost.cost_model.CostModel.at`."""
        costs: dict[str, Any] = self.model.at(layers, widths)._asdict()
        if self.latency is not None:
            costs["latency_ms"] = self.latency.at(layers, widths)
        if (target := self.targets.get("activation_memory")) is not None:
            # The sum over layers of what is above the limit stands for the largest: so it falls with every layer's.
            of_layers = self.model.memory_of_layers(layers, widths).values()
            costs["activation_memory"] = target + sum(np.maximum(0.0, memory - target) for memory in of_layers)
        return {name: np.atleast_1d(costs[name]) for name in self.targets}

    def costs_of_layer(
        self, name: str, options: tuple[DecomposedLayer | None, ...], widths: Mapping[str, int]
    ) -> dict[DecomposedLayer | None, dict[str, float]]:
        """Return what one layer adds to the bounded costs, with each of some options; None: dense."""
        key = (name, options, self.model.widths_of(name, widths))
        if key not in self._of_layers:
            latency = [0.0] * len(options)
            if "latency_ms" in self.targets and self.latency is not None:
                latency = self.latency.of_layer(name, options, widths)
            memory = self._memory_above(name, options, widths)
            costs = zip(self.model.of_layer(name, options, widths), latency, memory, strict=True)
            all_costs = [{**c._asdict(), "latency_ms": ms, "activation_memory": above} for c, ms, above in costs]
            bounded = [{target: float(cost[target]) for target in self.targets} for cost in all_costs]
            self._of_layers[key] = dict(zip(options, bounded, strict=True))
        return self._of_layers[key]

    def _memory_above(
        self, name: str, options: Sequence[DecomposedLayer | None], widths: Mapping[str, int]
    ) -> list[float]:
        """Return by how much a layer's memory exceeds its limit with each option; 0 where there is none."""
        if (target := self.targets.get("activation_memory")) is None:
            return [0.0] * len(options)
        return [max(0.0, memory - target) for memory in self.model.memory_of_layer(name, options, widths)]

    def all_costs(self, layers: Layers, widths: Mapping[str, Any]) -> dict[str, Any]:
        """Return all costs that are known, bounded or not."""
        latency = {} if self.latency is None else {"latency_ms": self.latency.at(layers, widths)}
        memory = {"activation_memory": self.model.activation_memory(layers, widths)}
        return {**self.model.at(layers, widths)._asdict(), **memory, **latency}

    def out_of_reach(self, layers: Layers, widths: Mapping[str, Any]) -> UsageError:
        """Return the error of a budget that no choice meets, with the nearest costs that were reached."""
        costs = self.all_costs(layers, widths)
        reached = ", ".join(f"{name} {_number(float(costs[name]))}" for name in self.targets)
        limits = " and ".join(f"{name} {_number(target)}" for name, target in self.targets.items())
        name = self.dense.architecture.name
        return UsageError(f"{name}: no allocation within {limits}; the nearest that was reached: {reached}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
