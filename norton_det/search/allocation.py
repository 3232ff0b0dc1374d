"""Allocation: a method and a rank for each layer and a width for each channel group, together, within a budget.

What each choice does to the network's output is measured one by one (:mod:`norton_det.search.sensitivity`) and added
up; what a network costs is exact. From the dense network, the choice with the largest saving over the budget for the
smallest change is made repeatedly; then single choices are reversed where the remaining ones, made again, change less.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel, Costs
from norton_det.errors import UsageError
from norton_det.models import Architecture
from norton_det.models.tasks import Images
from norton_det.notation import format_ranks, format_rates
from norton_det.search.options import LEVELS
from norton_det.search.probes import Choice, RankChoice, RateChoice
from norton_det.search.sensitivity import Sensitivity, measure
from norton_det.spec import DecomposedLayer, Rank, Spec
from norton_det.structure.build import build_network
from norton_det.structure.network import Network
from norton_det.structure.settings import decomposable_layers, widths_at

MEASURED = 256
"""Maximum number of images on which choices are measured; of a detector, whose images are larger, a quarter of them."""
MIXED = ("cp", "tucker2", "svd")
"""The methods from which one is chosen for each layer where none is given and the whole of a detector is compressed."""
_ROUNDS = 5  # of taking each choice back
_TINY = 1e-12


@dataclass(frozen=True)
class Allocation:
    """A configuration, what it costs, and the expected change of the output as a fraction of its variance.

    The first three are arguments of :func:`norton_det.compress`: ``rank`` and ``decomposition`` by layer where there
    are several methods to choose from, otherwise a list and a name; ``rank`` is None where nothing is decomposed.
    """

    rank: str | Mapping[str, Rank] | None
    rates: str
    macs: int
    macs_published: int
    params: int
    change: float
    decomposition: str | Mapping[str, str] = "cp"
    latency_ms: float | None = None


def allocate(
    network: Network,
    budget: Budget,
    images: Images,
    *,
    decomposition: str = "cp",
    criterion: str = "pabs",
    seed: int = 0,
) -> Allocation:
    """Choose ranks and rates for a dense network.

    Args:
        network: it stays as it is.
        budget: the limit of what the result may cost.
        images: without labels, as the network takes them; the first :data:`MEASURED` of them are used.
        decomposition: registered name.
        criterion: registered name: which channels stay.
        seed: of what is drawn.

    Raises:
        UsageError: an unknown name, a network that is compressed already, no image, a budget that is empty or too
            small; the message gives what was reached.
    """
    budget.targets()
    options: dict[str, Any] = {"decomposition": decomposition, "criterion": criterion, "seed": seed}
    sensitivity = measure(network, images[:MEASURED], **options)
    return best_within(budget, network.architecture, sensitivity, decomposition=decomposition)


def best_within(
    budget: Budget, architecture: Architecture, sensitivity: Sensitivity, *, decomposition: str = "cp"
) -> Allocation:
    """Choose ranks and rates from what was measured; nothing is drawn.

    Raises:
        UsageError: as :func:`allocate`.
    """
    search = _Search(budget, architecture, sensitivity, decomposition)
    best = search.descend(_State({}, {}))
    for _ in tqdm(range(_ROUNDS), desc="allocate", unit="round", disable=None, leave=False):
        before = search.change(best)
        layers_and_rates: list[str | int] = [*best.ranks, *best.levels]
        for one in layers_and_rates:
            tried = search.descend(search.taken_back(best, one))
            best = min(best, tried, key=search.change)
        if search.change(best) >= before:
            break
    return search.allocation(best)


class _State(NamedTuple):
    """Choices: a rank for layers, a level for rates; others are dense and whole."""

    ranks: Mapping[str, Rank]
    levels: Mapping[int, int]

    def with_choice(self, choice: Choice) -> "_State":
        if isinstance(choice, RateChoice):
            return self._replace(levels={**self.levels, choice.rate: choice.level})
        ranks = {name: rank for name, rank in self.ranks.items() if name != choice.layer}
        return self._replace(ranks=ranks if choice.rank is None else {**ranks, choice.layer: choice.rank})


class _Move(NamedTuple):
    """One more choice, how much more the output changes with it, and what it saves of each cost."""

    choice: Choice
    change: float
    savings: Mapping[str, float]


class _Search:
    def __init__(
        self, budget: Budget, architecture: Architecture, sensitivity: Sensitivity, decomposition: str
    ) -> None:
        self.dense = build_network(Spec(architecture.name, architecture.num_classes), architecture, "meta")
        self.method = decomposition
        self.model = CostModel(architecture)
        self.targets = budget.targets()
        self.layers = decomposable_layers(self.dense, decomposition)[0]
        self.ranks: dict[str, dict[Rank | None, float]]
        self.ranks = {layer: {None: 0.0} | dict(ranks) for layer, ranks in sensitivity.ranks.items()}
        self.rates = {rate: {0: 0.0, **levels} for rate, levels in sensitivity.rates.items()}
        self.steps = [RateChoice(rate, level) for rate, levels in self.rates.items() for level in levels]

    def change(self, state: _State) -> float:
        ranks = sum(self.ranks[layer][rank] for layer, rank in state.ranks.items())
        return ranks + sum(self.rates[rate][level] for rate, level in state.levels.items())

    def rates_of(self, state: _State) -> NDArray[np.float64]:
        """Return the rates in the architecture's order."""
        count = len(self.dense.architecture.rate_order)
        return np.array([state.levels.get(i, 0) / LEVELS for i in range(count)])

    def costs(self, state: _State, steps: Sequence[RateChoice] = (RateChoice(0, 0),)) -> Costs:
        """Return the costs with each of some rate choices; arrays (S,)."""
        rates = self.rates_of(state)[:, None].repeat(len(steps), 1)
        for i, (rate, level) in enumerate(steps):
            rates[rate, i] = max(level / LEVELS, rates[rate, i])
        layers = {layer: DecomposedLayer(self.method, rank) for layer, rank in state.ranks.items()}
        return self.model.at(layers, widths_at(self.dense, rates))

    def descend(self, state: _State) -> _State:
        """Make choices until the budget is met."""
        while True:
            costs = self.costs(state)
            over = {name: max(0.0, getattr(costs, name)[0] - target) for name, target in self.targets.items()}
            if not any(over.values()):
                return state
            best, best_worth = None, 0.0
            for move in self._moves(state, costs):
                # It ends: what is gained is never more than by what the sum of the costs' fractions falls.
                gain = sum(min(over[name], move.savings[name]) / target for name, target in self.targets.items())
                worth = gain / max(move.change, _TINY)
                if gain > 0 and worth > best_worth:
                    best, best_worth = move, worth
            if best is None:
                raise self._out_of_reach(costs)
            state = state.with_choice(best.choice)

    def _out_of_reach(self, costs: Costs) -> UsageError:
        reached = ", ".join(f"{name} {int(getattr(costs, name)[0]):,}" for name in self.targets)
        limits = " and ".join(f"{name} {target:,.0f}" for name, target in self.targets.items())
        name = self.dense.architecture.name
        return UsageError(f"{name}: no allocation within {limits}; the nearest that was reached: {reached}")

    def _moves(self, state: _State, costs: Costs) -> Iterator[_Move]:
        after = self.costs(state, self.steps)
        saved = {name: (getattr(costs, name)[0] - getattr(after, name)).tolist() for name in self.targets}
        for i, step in enumerate(self.steps):
            levels, level = self.rates[step.rate], state.levels.get(step.rate, 0)
            if step.level > level:
                yield _Move(step, levels[step.level] - levels[level], {name: saved[name][i] for name in saved})
        widths = {group: int(width) for group, width in widths_at(self.dense, self.rates_of(state)).items()}
        for layer, ranks in self.ranks.items():
            now = state.ranks.get(layer)
            macs, params = zip(*self.model.of_layer(layer, self._decomposed([now, *ranks]), widths), strict=True)
            for i, rank in enumerate(ranks, start=1):
                savings = {name: (params[0] - params[i] if name == "params" else macs[0] - macs[i]) for name in saved}
                yield _Move(RankChoice(layer, rank), ranks[rank] - ranks[now], savings)

    def _decomposed(self, ranks: Sequence[Rank | None]) -> list[DecomposedLayer | None]:
        return [None if rank is None else DecomposedLayer(self.method, rank) for rank in ranks]

    def taken_back(self, state: _State, layer_or_rate: str | int) -> _State:
        """Return the state with one choice, a layer's or a rate's, moved towards the dense network by a step."""
        if isinstance(layer_or_rate, int):
            level = state.levels[layer_or_rate]
            lower = max((other for other in self.rates[layer_or_rate] if other < level), default=0)
            return state.with_choice(RateChoice(layer_or_rate, lower))
        ranks = self.ranks[layer_or_rate]
        change = ranks[state.ranks.get(layer_or_rate)]
        milder = [rank for rank in ranks if ranks[rank] < change]
        rank = max(milder, key=lambda rank: ranks[rank], default=None)
        return state.with_choice(RankChoice(layer_or_rate, rank))

    def allocation(self, state: _State) -> Allocation:
        """Return the state as a configuration."""
        costs = self.costs(state)
        return Allocation(
            format_ranks([state.ranks.get(layer, 0) for layer in self.layers]) or None,
            format_rates(self.rates_of(state).tolist()),
            int(costs.macs[0]),
            int(costs.macs_published[0]),
            int(costs.params[0]),
            self.change(state),
        )
