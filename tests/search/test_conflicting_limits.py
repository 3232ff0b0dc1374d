"""Limits that pull against each other: what saves of one costs of the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from norton_det.errors import UsageError
from norton_det.search.allocation import best_within
from norton_det.search.limits import Limits
from norton_det.search.sensitivity import Sensitivity
from norton_det.spec import DecomposedLayer
from norton_det.structure.settings import dense_network

EXACT, CHEAP = "layer1.0.conv1", "layer1.0.conv2"
RANK_1 = DecomposedLayer("cp", 1)
SAVED = {EXACT: 2.0, CHEAP: 3.2}
TIME = {EXACT: 0.3, CHEAP: 0.6}


class Conflicting(Limits):
    """Two layers of equal cost whose decomposition saves MACs and takes time."""

    def __init__(self, macs: float) -> None:
        self.dense = dense_network("resnet56_cifar")
        self.targets = {"macs": macs, "latency_ms": 1.0}

    def costs(self, layers: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> dict[str, Any]:
        ones = np.ones(np.shape(next(iter(widths.values()))) or (1,))
        macs = 10 - sum(SAVED[name] for name in layers)
        return {"macs": macs * ones, "latency_ms": sum(TIME[name] for name in layers) * ones}

    def costs_of_layer(
        self, name: str, options: Sequence[DecomposedLayer | None], widths: Mapping[str, int]
    ) -> dict[DecomposedLayer | None, dict[str, float]]:
        dense = {"macs": 5.0, "latency_ms": 0.0}
        small = {"macs": 5 - SAVED[name], "latency_ms": TIME[name]}
        return {option: small if option else dense for option in options}

    def all_costs(self, layers: Mapping[str, DecomposedLayer], widths: Mapping[str, Any]) -> dict[str, Any]:
        known = {name: values[0] for name, values in self.costs(layers, widths).items()}
        return {"macs_published": 0, "params": 0, "activation_memory": 0, **known}


CHANGES = Sensitivity({EXACT: {RANK_1: 1.0}, CHEAP: {RANK_1: 0.01}}, {})


def test_a_choice_that_cannot_be_taken_back_does_not_end_an_allocation() -> None:
    found = best_within(Conflicting(5.0), CHANGES)
    assert (found.macs, round(found.latency_ms or 0, 6)) == (4, 0.9)


def test_what_is_out_of_reach_is_said_with_the_costs_that_were_reached() -> None:
    with pytest.raises(UsageError, match=r"no allocation within macs 3 and latency_ms 1; .* macs 4.8, latency_ms 0.9$"):
        best_within(Conflicting(3.0), CHANGES)
