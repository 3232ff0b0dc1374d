"""Budget search."""

import pytest

from norton_det.complexity import count_complexity
from norton_det.errors import UsageError
from norton_det.search import search
from norton_det.setting import spec_of_setting


def test_candidates_meet_both_targets_and_are_sorted() -> None:
    found = search("resnet50", target_macs=2.32e9, target_params=14.51e6)
    assert len(found) == 10
    assert [c.deviation for c in found] == sorted(c.deviation for c in found)
    for candidate in found:
        assert 0.99 * 2.32e9 <= candidate.macs <= 2.32e9
        assert 0.99 * 14.51e6 <= candidate.params <= 14.51e6
    best = found[0]
    counted = count_complexity(spec_of_setting("resnet50", best.rank, best.rates))
    assert (best.macs, best.macs_published, best.params) == (counted.macs, counted.macs_published, counted.params)


@pytest.mark.parametrize("targets", [{"target_macs": 30e6}, {"target_params": 0.2e6}])
def test_one_target(targets: dict[str, float]) -> None:
    found = search("resnet56_cifar", rank=2, **targets, convention="published", most=3)
    assert len(found) <= 3
    for candidate in found:
        assert candidate.rank == 2
        cost = {"target_macs": candidate.macs_published, "target_params": candidate.params}
        assert all(0.99 * target <= cost[name] <= target for name, target in targets.items())


def test_what_cannot_be_met_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"no setting within 1% below macs 2,000,000,000 and params 1,000; nearest .*rank"
    ):
        search("resnet56_cifar", target_macs=2e9, target_params=1000, rank=1)
    with pytest.raises(UsageError, match="no target"):
        search("resnet56_cifar")
    with pytest.raises(UsageError, match="unknown convention 'x'; expected one of: plain, published"):
        search("resnet56_cifar", target_macs=1e6, convention="x")
    with pytest.raises(UsageError, match="rank is 0"):
        search("resnet56_cifar", target_macs=1e6, rank=0)
