"""Budget search: ranks and pruning rates whose network costs no more than a budget, and hardly less.

Candidates have the publication's form, ``"[0.]+[p]*k+[q]*m"``: one rate for the first k layers after the stem, another
one for the rest; and one rank for all layers (of a decomposition whose ranks depend on the layer, one fraction).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel, Costs
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.notation import format_ranks, format_rates
from norton_det.spec import DecomposedLayer, Rank
from norton_det.structure.build import layer_of
from norton_det.structure.network import Network
from norton_det.structure.settings import Ranks, chosen_layers, decomposable_layers, dense_network, widths_at

_RATES = np.arange(0, 96) / 100
_PER_RANK = 3  # candidates that are kept of each rank and k


class Latency(Protocol):
    """Milliseconds by configuration."""

    dense: float
    """Of the dense network."""

    def at(self, decompositions: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return milliseconds, for arrays of widths."""


@dataclass(frozen=True)
class Candidate:
    """A configuration and what it costs.

    Attributes:
        rank: in the notation of :func:`norton_det.compress`; None where no layer can be decomposed.
        rates: likewise.
        macs: multiply-accumulates.
        macs_published: the same in the published convention.
        params: parameters.
        deviation: the largest fraction by which it stays below a target.
        latency_ms: milliseconds, where latency is asked for.
        activation_memory: bytes that a layer needs at once, where it is limited.
    """

    rank: int | str | None
    rates: str
    macs: int
    macs_published: int
    params: int
    deviation: float
    latency_ms: float | None = None
    activation_memory: int | None = None


def search(
    arch: str,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_activation_memory: float | None = None,
    target_latency_ms: float | None = None,
    target_speedup: float | None = None,
    latency: Latency | None = None,
    rank: Rank | None = None,
    decomposition: str = "cp",
    convention: str = "plain",
    tolerance: float = 0.01,
    limit: int = 10,
    scope: str | None = None,
    round_to: int = 1,
) -> list[Candidate]:
    """Find configurations within a budget.

    Args:
        arch: registered name of the architecture.
        target_macs: upper limit of the multiply-accumulates, at the architecture's image size.
        target_params: upper limit of the parameters.
        target_activation_memory: upper limit of the bytes that a layer needs at once, for one image.
        target_latency_ms: upper limit of the milliseconds of a deployed network; needs ``latency``.
        target_speedup: the same as a factor to the dense network's.
        latency: of the architecture's networks: a :class:`norton_det.search.latency.LatencyModel`.
        rank: the only rank to try; None tries all that the decomposition offers.
        decomposition: registered name.
        convention: how MACs are counted: "plain" (convolutions and linear layers) or "published" (and batch norms).
        tolerance: fraction by which a candidate may stay below a target.
        limit: number of candidates to return.
        scope: the part of the network that is compressed; None is the architecture's default.
        round_to: multiple to which widths and ranks are rounded down.

    Returns:
        Candidates that are above no target, smallest deviation first.

    Raises:
        UsageError: an unknown architecture, scope, decomposition or convention, no target, a rank below 1; or targets
            that cannot be met together: the message gives the nearest reachable costs.
    """
    if target_speedup is not None and target_speedup <= 0:
        raise UsageError(f"target_speedup is {target_speedup}; expected more than 0")
    if latency is None and (target_latency_ms is not None or target_speedup is not None):
        raise UsageError("target_latency_ms or target_speedup without latency; expected a LatencyModel")
    if target_speedup is not None and latency is not None:
        target_latency_ms = min(latency.dense / target_speedup, target_latency_ms or np.inf)
    timed = {} if target_latency_ms is None else {"latency_ms": target_latency_ms}
    counted = Budget(target_macs, target_params, convention, target_activation_memory)
    budget = {**(counted.targets() if counted or not timed else {}), **timed}
    within: dict[tuple[int, int], Candidate] = {}
    nearest: Candidate | None = None
    dense = dense_network(arch, scope=scope, round_to=round_to)
    for candidate in _candidates(dense, decomposition, rank, budget, latency):
        if 0 <= candidate.deviation <= tolerance:
            within.setdefault((candidate.macs, candidate.params), candidate)
        if nearest is None or abs(candidate.deviation) < abs(nearest.deviation):
            nearest = candidate
    if not within:
        assert nearest is not None
        raise UsageError(f"{arch}: no configuration within {tolerance:.0%} below {_out_of_reach(budget, nearest)}")
    return sorted(within.values(), key=lambda c: (c.deviation, str(c.rank), c.rates))[:limit]


def _out_of_reach(budget: Mapping[str, float], nearest: Candidate) -> str:
    targets = " and ".join(f"{name} {target:,.0f}" for name, target in budget.items())
    latency = "" if nearest.latency_ms is None else f", latency_ms {nearest.latency_ms:.2f}"
    latency += "" if nearest.activation_memory is None else f", activation_memory {nearest.activation_memory:,}"
    return (
        f"{targets}; nearest reachable: rank {nearest.rank}, rates {nearest.rates} with macs {nearest.macs:,}, "
        f"macs_published {nearest.macs_published:,}, params {nearest.params:,}{latency}"
    )


def uniform_ranks(dense: Network, decomposition: str) -> list[dict[str, Rank]]:
    """Return the ranks of all layers in each of the steps that the decomposition offers, from low to high.

    For CP these are 1 to 8, for Tucker-2 the same eighths of the channels of every layer.
    """
    block = DECOMPOSITIONS[decomposition]
    layers = decomposable_layers(dense, decomposition)[0]
    choices = {name: block.choices(layer_of(dense.module, name, dense.architecture)) for name in layers}
    steps = max(map(len, choices.values()), default=0)
    return [{name: ranks[min(i, len(ranks) - 1)] for name, ranks in choices.items() if ranks} for i in range(steps)]


def _candidates(
    dense: Network, decomposition: str, rank: Rank | None, budget: Mapping[str, float], latency: Latency | None
) -> Iterator[Candidate]:
    """Yield the best candidates for each rank and k; the deviation of one above a target is negative."""
    model = CostModel(dense.architecture)
    order = dense.architecture.rate_order
    lead = int(bool(order) and order[0].name == "stem")  # which the publication never prunes
    p, q = (grid.ravel() for grid in np.meshgrid(_RATES, _RATES))
    ranks: Sequence[Ranks] = uniform_ranks(dense, decomposition) if rank is None else [rank]
    options = [chosen_layers(dense, one, decomposition)[0] for one in ranks]
    for layers, k in product(options or [{}], range(1, max(2, len(order) - lead))):
        rates = np.zeros((len(order), p.size))
        rates[lead : lead + k], rates[lead + k :] = p, q
        widths = widths_at(dense, rates)
        costs: dict[str, Any] = model.at(layers, widths)._asdict()
        if "activation_memory" in budget:
            costs["activation_memory"] = model.activation_memory(layers, widths)
        if latency is not None:
            costs["latency_ms"] = latency.at(layers, widths)
        deviation = _deviation(costs, budget)
        possible = np.min(list(widths.values()), 0) > 0
        ordered = np.where(possible, np.abs(deviation) + (deviation < 0), np.inf).argsort(kind="stable")
        for i in ordered[:_PER_RANK]:
            counts = {name: int(costs[name][i]) for name in Costs._fields}
            time = float(costs["latency_ms"][i]) if latency is not None else None
            memory = int(costs["activation_memory"][i]) if "activation_memory" in costs else None
            written = _rank(list(layers.values()))
            rates_text = format_rates(rates[:, i].tolist())
            further: dict[str, Any] = {"latency_ms": time, "activation_memory": memory}
            yield Candidate(written, rates_text, **counts, deviation=float(deviation[i]), **further)


def _rank(layers: Sequence[DecomposedLayer]) -> int | str | None:
    """Return the ranks as one number where they are one, or as text; None without layers."""
    ranks = [layer.rank for layer in layers]
    if not ranks:
        return None
    first = ranks[0]
    return first if isinstance(first, int) and set(ranks) == {first} else format_ranks(ranks)


def _deviation(costs: Mapping[str, Any], budget: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the largest fraction by which a cost stays below its target; where one is above, minus that fraction."""
    below = np.stack([1 - costs[name] / target for name, target in budget.items()])
    furthest: NDArray[np.float64] = np.abs(below).max(0)
    return np.where(below.min(0) >= 0, furthest, -furthest)
