"""Budget search: ranks and pruning rates whose network costs no more than a budget, and hardly less.

Candidates are of the form that the publication uses, ``"[0.]+[p]*k+[q]*m"``: one rate for the first k layers after the
stem, another one for the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel, Costs
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import Spec, format_rates
from norton_det.structure.build import build
from norton_det.structure.settings import chosen_layers, widths_at

RANKS = tuple(range(1, 9))
"""Ranks below that of an exact decomposition of a 3x3 convolution."""
_RATES = np.arange(0, 96) / 100
_PER_FORM = 3  # candidates that are kept of each rank and k


class Latency(Protocol):
    """Milliseconds by setting."""

    dense: float
    """Of the dense network."""

    def at(self, ranks: Mapping[str, Any], widths: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return milliseconds, for arrays of widths."""


@dataclass(frozen=True)
class Candidate:
    """A setting and what it costs; ``deviation`` is by which share it stays below the budget, the largest of all."""

    rank: int
    rates: str
    macs: int
    macs_published: int
    params: int
    deviation: float
    latency_ms: float | None = None


def search(
    arch: str,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency_ms: float | None = None,
    target_speedup: float | None = None,
    latency: Latency | None = None,
    rank: int | None = None,
    convention: str = "plain",
    tolerance: float = 0.01,
    most: int = 10,
) -> list[Candidate]:
    """Find settings within a budget.

    Args:
        arch: registered name of the architecture.
        target_macs: the most multiply-accumulates, at the architecture's image size.
        target_params: the most parameters.
        target_latency_ms: the most milliseconds of a deployed network; needs ``latency``.
        target_speedup: the same as a factor to the dense network's.
        latency: of the architecture's networks, by settings: a :class:`norton_det.search.latency.LatencyModel`.
        rank: the only rank to look at; None looks at 1 to 8.
        convention: how MACs are counted: "plain" (convolutions and linear layers) or "published" (and batch norms).
        tolerance: by which share a candidate may stay below a target.
        most: number of candidates to return.

    Returns:
        Candidates that are above no target, smallest deviation first.

    Raises:
        UsageError: an unknown architecture or convention, no target, a rank below 1; or targets that cannot be met
            together: the message gives the nearest reachable costs.
    """
    if target_speedup is not None and target_speedup <= 0:
        raise UsageError(f"target_speedup is {target_speedup}; expected more than 0")
    if latency is None and (target_latency_ms is not None or target_speedup is not None):
        raise UsageError("target_latency_ms or target_speedup without latency; expected a LatencyModel")
    if target_speedup is not None and latency is not None:
        target_latency_ms = min(latency.dense / target_speedup, target_latency_ms or np.inf)
    timed = {} if target_latency_ms is None else {"latency_ms": target_latency_ms}
    counted = target_macs is not None or target_params is not None or not timed
    budget = {**(Budget(target_macs, target_params, convention).targets() if counted else {}), **timed}
    found: dict[tuple[int, int], Candidate] = {}
    nearest: Candidate | None = None
    for candidate in _best_of_each_form(arch, budget, RANKS if rank is None else (rank,), latency):
        if 0 <= candidate.deviation <= tolerance:
            found.setdefault((candidate.macs, candidate.params), candidate)
        if nearest is None or abs(candidate.deviation) < abs(nearest.deviation):
            nearest = candidate
    if not found:
        assert nearest is not None
        wanted = " and ".join(f"{name} {target:,.0f}" for name, target in budget.items())
        raise UsageError(
            f"{arch}: no setting within {tolerance:.0%} below {wanted}; nearest reachable: rank {nearest.rank}, rates "
            f"{nearest.rates} with macs {nearest.macs:,}, macs_published {nearest.macs_published:,}, "
            f"params {nearest.params:,}{_told(nearest)}"
        )
    return sorted(found.values(), key=lambda c: (c.deviation, c.rank, c.rates))[:most]


def _told(candidate: Candidate) -> str:
    return "" if candidate.latency_ms is None else f", latency_ms {candidate.latency_ms:.2f}"


def _best_of_each_form(
    arch: str, budget: dict[str, float], ranks: tuple[int, ...], latency: Latency | None
) -> Iterator[Candidate]:
    """Yield the best candidates for each rank and k; the deviation of one above a target is negative."""
    model = CostModel(arch)
    dense = Spec(arch, ARCHITECTURES[arch].num_classes)
    net = build(dense, "meta")
    order = ARCHITECTURES[arch].rate_order
    lead = int(order[0][0] == "stem")  # which the publication never prunes
    p, q = (grid.ravel() for grid in np.meshgrid(_RATES, _RATES))
    for rank, k in product(ranks, range(1, len(order) - lead)):
        rates = np.zeros((len(order), p.size))
        rates[lead : lead + k], rates[lead + k :] = p, q
        widths = widths_at(dense, rates)
        chosen = chosen_layers(net, dense, rank)[0]
        costs: dict[str, Any] = model.at(chosen, widths)._asdict()
        if latency is not None:
            costs["latency_ms"] = latency.at(chosen, widths)
        deviation = _deviation(costs, budget)
        possible = np.min(list(widths.values()), 0) > 0
        ordered = np.where(possible, np.abs(deviation) + (deviation < 0), np.inf).argsort(kind="stable")
        for i in ordered[:_PER_FORM]:
            counts = {name: int(costs[name][i]) for name in Costs._fields}
            time = float(costs["latency_ms"][i]) if latency is not None else None
            setting = format_rates(rates[:, i].tolist())
            yield Candidate(rank, setting, **counts, deviation=float(deviation[i]), latency_ms=time)


def _deviation(costs: Mapping[str, Any], budget: dict[str, float]) -> NDArray[np.float64]:
    """Return the largest share by which a cost stays below its target; where one is above, minus that share."""
    below = np.stack([1 - costs[name] / target for name, target in budget.items()])
    furthest: NDArray[np.float64] = np.abs(below).max(0)
    return np.where(below.min(0) >= 0, furthest, -furthest)
