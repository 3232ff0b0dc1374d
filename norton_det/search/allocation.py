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
from torch import Tensor
from tqdm import tqdm

from norton_det.cost.budget import Budget
from norton_det.models import Architecture
from norton_det.models.tasks import Images
from norton_det.notation import format_ranks, format_rates
from norton_det.search.limits import Limits
from norton_det.search.options import LEVELS
from norton_det.search.probes import Choice, RankChoice, RateChoice
from norton_det.search.sensitivity import Sensitivity, measure
from norton_det.spec import DecomposedLayer, Rank
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
    activation_memory: int | None = None


def allocate(
    network: Network,
    budget: Budget,
    images: Images,
    *,
    decomposition: str | Sequence[str] | None = None,
    criterion: str = "pabs",
    seed: int = 0,
) -> Allocation:
    """Choose methods, ranks and rates for a dense network.

    Args:
        network: it stays as it is; its scope says what is compressed.
        budget: the limits of what the result may cost.
        images: without labels, as the network takes them; the first :data:`MEASURED` of them are used.
        decomposition: registered name, or several to choose from for each layer; None: "cp", and for a whole detector
            :data:`MIXED`.
        criterion: registered name: which channels stay.
        seed: of what is drawn.

    Raises:
        UsageError: an unknown name, a network that is compressed already, no image, a budget that is empty or too
            small; the message gives what was reached.
    """
    budget.check()
    if decomposition is None:
        decomposition = MIXED if is_whole_detector(network.architecture) else "cp"
    options: dict[str, Any] = {"decomposition": decomposition, "criterion": criterion, "seed": seed}
    count = MEASURED if isinstance(images, Tensor) else MEASURED // 4
    sensitivity = measure(network, images[:count], **options)
    limits = Limits(budget, network.architecture, network.spec, sensitivity.decompositions)
    return best_within(limits, sensitivity, decomposition=decomposition)


def is_whole_detector(architecture: Architecture) -> bool:
    """Tell whether the scope is all of a network that has scopes."""
    return bool(architecture.scopes) and not architecture.within


def best_within(limits: Limits, sensitivity: Sensitivity, *, decomposition: str | Sequence[str] = "cp") -> Allocation:
    """Choose methods, ranks and rates from what was measured; nothing is drawn.

    Args:
        limits: of what the result may cost.
        sensitivity: what was measured.
        decomposition: registered name, or those from which was chosen: it says how the result is written.

    Raises:
        UsageError: as :func:`allocate`.
    """
    search = _Search(limits, sensitivity)
    best = search.descend(_State({}, {}))
    if not search.is_within(best):
        raise limits.out_of_reach(best.layers, search.widths(best))
    for _ in tqdm(range(_ROUNDS), desc="allocate", unit="round", disable=None, leave=False):
        before = search.change(best)
        layers_and_rates: list[str | int] = [*best.layers, *best.levels]
        for one in layers_and_rates:
            tried = search.descend(search.taken_back(best, one))
            if search.is_within(tried):
                best = min(best, tried, key=search.change)
        if search.change(best) >= before:
            break
    return search.allocation(best, decomposition)


class _State(NamedTuple):
    """Choices: a method and rank for layers, a level for rates; others are dense and whole."""

    layers: Mapping[str, DecomposedLayer]
    levels: Mapping[int, int]

    def with_choice(self, choice: Choice) -> "_State":
        if isinstance(choice, RateChoice):
            return self._replace(levels={**self.levels, choice.rate: choice.level})
        layers = {name: layer for name, layer in self.layers.items() if name != choice.layer}
        return self._replace(
            layers=layers if choice.decomposed is None else {**layers, choice.layer: choice.decomposed}
        )


class _Move(NamedTuple):
    """One more choice, how much more the output changes with it, and what it saves of each cost."""

    choice: Choice
    change: float
    savings: Mapping[str, float]


class _Search:
    def __init__(self, limits: Limits, sensitivity: Sensitivity) -> None:
        self.limits, self.dense = limits, limits.dense
        self.options: dict[str, dict[DecomposedLayer | None, float]]
        self.options = {layer: {None: 0.0} | dict(tried) for layer, tried in sensitivity.decompositions.items()}
        self.rates = {rate: {0: 0.0, **levels} for rate, levels in sensitivity.rates.items()}
        self.steps = [RateChoice(rate, level) for rate, levels in self.rates.items() for level in levels]

    def change(self, state: _State) -> float:
        layers = sum(self.options[name][layer] for name, layer in state.layers.items())
        return layers + sum(self.rates[rate][level] for rate, level in state.levels.items())

    def rates_of(self, state: _State) -> NDArray[np.float64]:
        """Return the rates in the architecture's order."""
        count = len(self.dense.architecture.rate_order)
        return np.array([state.levels.get(i, 0) / LEVELS for i in range(count)])

    def costs(self, state: _State, steps: Sequence[RateChoice] = (RateChoice(0, 0),)) -> dict[str, Any]:
        """Return the bounded costs with each of some rate choices; arrays (S,)."""
        rates = self.rates_of(state)[:, None].repeat(len(steps), 1)
        for i, (rate, level) in enumerate(steps):
            rates[rate, i] = max(level / LEVELS, rates[rate, i])
        return self.limits.costs(state.layers, widths_at(self.dense, rates))

    def widths(self, state: _State) -> dict[str, int]:
        """Return the width of every channel group."""
        return {group: int(width) for group, width in widths_at(self.dense, self.rates_of(state)).items()}

    def over(self, costs: Mapping[str, Any]) -> dict[str, float]:
        """Return by how much each limit is exceeded."""
        return {name: max(0.0, costs[name][0] - target) for name, target in self.limits.targets.items()}

    def is_within(self, state: _State) -> bool:
        """Tell whether a state meets the budget."""
        return not any(self.over(self.costs(state)).values())

    def descend(self, state: _State) -> _State:
        """Make choices until the budget is met, or none is left that comes nearer to it."""
        targets = self.limits.targets
        while True:
            costs = self.costs(state)
            over = self.over(costs)
            if not any(over.values()):
                return state
            best, best_worth = None, 0.0
            for move in self._moves(state, costs):
                # It ends: what is gained is never more than by what the sum of the costs' fractions falls.
                gain = sum(min(over[name], move.savings[name]) / target for name, target in targets.items())
                worth = gain / max(move.change, _TINY)
                if gain > 0 and worth > best_worth:
                    best, best_worth = move, worth
            if best is None:
                return state
            state = state.with_choice(best.choice)

    def _moves(self, state: _State, now_costs: Mapping[str, Any]) -> Iterator[_Move]:
        after = self.costs(state, self.steps)
        saved = {name: (now_costs[name][0] - after[name]).tolist() for name in after}
        for i, step in enumerate(self.steps):
            levels, level = self.rates[step.rate], state.levels.get(step.rate, 0)
            if step.level > level:
                yield _Move(step, levels[step.level] - levels[level], {name: saved[name][i] for name in saved})
        widths = self.widths(state)
        for layer, options in self.options.items():
            now = state.layers.get(layer)
            of_options = self.limits.costs_of_layer(layer, tuple(options), widths)
            for option, costs in of_options.items():
                savings = {name: of_options[now][name] - cost for name, cost in costs.items()}
                yield _Move(RankChoice(layer, option), options[option] - options[now], savings)

    def taken_back(self, state: _State, layer_or_rate: str | int) -> _State:
        """Return the state with one choice, a layer's or a rate's, moved towards the dense network by a step."""
        if isinstance(layer_or_rate, int):
            level = state.levels[layer_or_rate]
            lower = max((other for other in self.rates[layer_or_rate] if other < level), default=0)
            return state.with_choice(RateChoice(layer_or_rate, lower))
        options = self.options[layer_or_rate]
        change = options[state.layers.get(layer_or_rate)]
        milder = [option for option in options if options[option] < change]
        option = max(milder, key=lambda option: options[option], default=None)
        return state.with_choice(RankChoice(layer_or_rate, option))

    def allocation(self, state: _State, decomposition: str | Sequence[str]) -> Allocation:
        """Return the state as a configuration."""
        widths = widths_at(self.dense, self.rates_of(state))
        costs = self.limits.all_costs(state.layers, widths)
        rank: str | dict[str, Rank] | None
        methods: str | dict[str, str]
        if isinstance(decomposition, str):
            layers = decomposable_layers(self.dense, decomposition)[0]
            ranks = [state.layers[layer].rank if layer in state.layers else 0 for layer in layers]
            rank, methods = format_ranks(ranks) or None, decomposition
        else:
            rank = {name: layer.rank for name, layer in state.layers.items()} or None
            methods = {name: layer.method for name, layer in state.layers.items()} if rank else "cp"
        counts = {name: int(costs[name]) for name in ("macs", "macs_published", "params")}
        counts["activation_memory"] = int(costs["activation_memory"])
        latency = float(costs["latency_ms"]) if "latency_ms" in costs else None
        rates = format_rates(self.rates_of(state).tolist())
        return Allocation(rank, rates, **counts, change=self.change(state), decomposition=methods, latency_ms=latency)
