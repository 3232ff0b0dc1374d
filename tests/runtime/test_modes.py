"""Evaluation mode for a while."""

import pytest
from torch import nn

from norton_det.runtime.modes import evaluating


@pytest.mark.parametrize("failing", [False, True])
def test_every_modules_mode_is_restored(failing: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).eval(), nn.ReLU())
    before = [module.training for module in net.modules()]
    assert set(before) == {True, False}

    def evaluate() -> None:
        with evaluating(net) as same:
            assert same is net
            assert not any(module.training for module in net.modules())
            if failing:
                raise KeyError

    if failing:
        with pytest.raises(KeyError):
            evaluate()
    else:
        evaluate()
    assert [module.training for module in net.modules()] == before
