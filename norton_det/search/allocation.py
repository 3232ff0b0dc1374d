"""Allocation: a rank for each layer and a width for each channel group, together, within a budget.

What each choice does to the network's output is measured one by one (:mod:`norton_det.search.sensitivity`) and added
up; what a network costs is exact. From the dense network, the choice that saves most of what is over the budget for the
least change is made again and again; then single choices are taken back where the rest, made again, changes less.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from norton_det.calibration.layerwise import Images
from norton_det.cost.budget import Budget
from norton_det.cost.cost_model import CostModel, Costs
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.search.candidates import LEVELS
from norton_det.search.sensitivity import Sensitivity, measure
from norton_det.spec import Rank, Spec, format_ranks, format_rates
from norton_det.structure.build import build
from norton_det.structure.settings import decomposable_layers, widths_at

MEASURED = 256
"""Images on which choices are measured, at most."""
_ROUNDS = 5  # of taking each choice back
_TINY = 1e-12


@dataclass(frozen=True)
class Allocation:
    """A setting, what it costs, and the change of the output that is expected, as a share of its variance.

    ``rank`` and ``rates`` are in the notation of :func:`norton_det.compress`.
    """

    rank: str
    rates: str
    macs: int
    macs_published: int
    params: int
    change: float


def allocate(
    net: nn.Module,
    arch: str,
    budget: Budget,
    images: Images,
    *,
    decomposition: str = "cp",
    criterion: str = "pabs",
    seed: int = 0,
) -> Allocation:
    """Choose ranks and rates for a dense network.

    Args:
        net: it stays as it is.
        arch: registered name of its architecture.
        budget: the most that the result may cost.
        images: unlabelled, as the network takes them; the first :data:`MEASURED` of them are looked at.
        decomposition: registered name.
        criterion: registered name: which channels stay.
        seed: of what is drawn.

    Raises:
        UsageError: an unknown name, a network that is compressed already, no image, a budget that is empty or too
            small; the message gives what was reached.
    """
    budget.targets()
    measured = measure(net, arch, images[:MEASURED], decomposition=decomposition, criterion=criterion, seed=seed)
    return best_within(budget, arch, measured, decomposition=decomposition)


def best_within(budget: Budget, arch: str, measured: Sensitivity, *, decomposition: str = "cp") -> Allocation:
    """Choose ranks and rates from what was measured; nothing is drawn.

    Raises:
        UsageError: as :func:`allocate`.
    """
    search = _Search(budget, arch, measured, decomposition)
    best = search.descend(_State({}, {}))
    for _ in tqdm(range(_ROUNDS), desc="allocate", unit="round", disable=None, leave=False):
        before = search.change(best)
        choices: list[str | int] = [*best.ranks, *best.levels]
        for choice in choices:
            tried = search.descend(search.taken_back(best, choice))
            best = min(best, tried, key=search.change)
        if search.change(best) >= before:
            break
    return search.allocation(best)


class _State(NamedTuple):
    """Choices: a rank for layers, a level for rates; others are dense and whole."""

    ranks: Mapping[str, Rank]
    levels: Mapping[int, int]

    def with_rank(self, layer: str, rank: Rank | None) -> "_State":
        others = {name: own for name, own in self.ranks.items() if name != layer}
        return self._replace(ranks=others if rank is None else {**others, layer: rank})

    def with_level(self, rate: int, level: int) -> "_State":
        return self._replace(levels={**self.levels, rate: level})


class _Search:
    def __init__(self, budget: Budget, arch: str, measured: Sensitivity, decomposition: str) -> None:
        self.arch = arch
        self.spec = Spec(arch, ARCHITECTURES[arch].num_classes, decomposition=decomposition)
        self.model = CostModel(arch, decomposition)
        self.targets = budget.targets()
        self.layers = decomposable_layers(build(self.spec, "meta"), self.spec)[0]
        self.ranks: dict[str, dict[Rank | None, float]]
        self.ranks = {layer: {None: 0.0} | dict(ranks) for layer, ranks in measured.ranks.items()}
        self.rates = {rate: {0: 0.0, **levels} for rate, levels in measured.rates.items()}
        self.steps = [(rate, level) for rate, levels in self.rates.items() for level in levels]

    def change(self, state: _State) -> float:
        ranks = sum(self.ranks[layer][rank] for layer, rank in state.ranks.items())
        return ranks + sum(self.rates[rate][level] for rate, level in state.levels.items())

    def rates_of(self, state: _State) -> NDArray[np.float64]:
        """Return the rates in the architecture's order."""
        return np.array([state.levels.get(i, 0) / LEVELS for i in range(len(ARCHITECTURES[self.arch].rate_order))])

    def costs(self, state: _State, steps: Sequence[tuple[int, int]] = ((0, 0),)) -> Costs:
        """Return the costs with each of some steps, a rate's number and the level it is raised to; arrays (S,)."""
        rates = self.rates_of(state)[:, None].repeat(len(steps), 1)
        for i, (rate, level) in enumerate(steps):
            rates[rate, i] = max(level / LEVELS, rates[rate, i])
        return self.model.at(state.ranks, widths_at(self.spec, rates))

    def descend(self, state: _State) -> _State:
        """Make choices until the budget is met."""
        while True:
            costs = self.costs(state)
            over = {name: max(0.0, getattr(costs, name)[0] - target) for name, target in self.targets.items()}
            if not any(over.values()):
                return state
            best, best_worth = None, 0.0
            for move, change, savings in self._moves(state, costs):
                # It ends: what is gained is never more than by what the sum of the costs' shares falls.
                gain = sum(min(over[name], savings[name]) / target for name, target in self.targets.items())
                worth = gain / max(change, _TINY)
                if gain > 0 and worth > best_worth:
                    best, best_worth = move, worth
            if best is None:
                reached = ", ".join(f"{name} {int(getattr(costs, name)[0]):,}" for name in self.targets)
                wanted = " and ".join(f"{name} {target:,.0f}" for name, target in self.targets.items())
                raise UsageError(f"{self.arch}: no allocation within {wanted}; the nearest that was reached: {reached}")
            state = best()

    def _moves(self, state: _State, costs: Costs) -> Iterator[tuple[Callable[[], _State], float, dict[str, float]]]:
        """Yield each single choice more, how much more the output changes with it, and what it saves."""
        after = self.costs(state, self.steps)
        saved = {name: (getattr(costs, name)[0] - getattr(after, name)).tolist() for name in self.targets}
        for i, (rate, level) in enumerate(self.steps):
            own = state.levels.get(rate, 0)
            if level > own:
                change = self.rates[rate][level] - self.rates[rate][own]
                yield partial(state.with_level, rate, level), change, {name: saved[name][i] for name in saved}
        widths = {group: int(width) for group, width in widths_at(self.spec, self.rates_of(state)).items()}
        for layer, ranks in self.ranks.items():
            rank = state.ranks.get(layer)
            macs, params = zip(*self.model.of_layer(layer, [rank, *ranks], widths), strict=True)
            for i, other in enumerate(ranks, start=1):
                savings = {name: (params[0] - params[i] if name == "params" else macs[0] - macs[i]) for name in saved}
                yield partial(state.with_rank, layer, other), ranks[other] - ranks[rank], savings

    def taken_back(self, state: _State, choice: str | int) -> _State:
        """Return the state with one choice, a layer's or a rate's, moved towards the dense network by a step."""
        if isinstance(choice, int):
            level = state.levels[choice]
            return state.with_level(choice, max((own for own in self.rates[choice] if own < level), default=0))
        ranks = self.ranks[choice]
        change = ranks[state.ranks.get(choice)]
        milder = [rank for rank in ranks if ranks[rank] < change]
        return state.with_rank(choice, max(milder, key=lambda rank: ranks[rank], default=None))

    def allocation(self, state: _State) -> Allocation:
        """Return the state as a setting."""
        costs = self.costs(state)
        return Allocation(
            format_ranks([state.ranks.get(layer, 0) for layer in self.layers]),
            format_rates(self.rates_of(state).tolist()),
            int(costs.macs[0]),
            int(costs.macs_published[0]),
            int(costs.params[0]),
            self.change(state),
        )
