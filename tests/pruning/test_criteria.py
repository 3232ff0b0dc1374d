"""Criteria: distances, elimination and the choice of filters."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Generator, Tensor, nn

import norton_det as nd
from norton_det.errors import UsageError
from norton_det.pruning import CRITERIA, Filters
from norton_det.pruning.base import norms
from norton_det.pruning.csa import csa_similarity
from norton_det.pruning.elimination import eliminate
from norton_det.pruning.pabs import pabs_distance
from norton_det.pruning.select import select_channels
from norton_det.pruning.subspace_angles import largest_principal_angle
from norton_det.pruning.vbd import vbd_distance


def random_factors(filters: int, rank: int, sizes: tuple[int, ...] = (16, 3, 3)) -> tuple[Tensor, ...]:
    return tuple(torch.randn(filters, n, rank, dtype=torch.float64) for n in sizes)


def test_planes_at_known_angles() -> None:
    angles = (0.0, 0.3, 1.0, math.pi / 2)
    planes = torch.zeros(4, 4, 2, dtype=torch.float64)
    planes[:, 0, 0] = 1  # a common line, so the smaller principal angle is 0
    for i, angle in enumerate(angles):
        planes[i, 1, 1], planes[i, 2, 1] = math.cos(angle), math.sin(angle)
    distance = pabs_distance((planes,))
    expected = torch.tensor(angles, dtype=torch.float64)
    torch.testing.assert_close(distance, (expected[:, None] - expected[None, :]).abs(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 4, 7])
def test_pabs_agrees_with_scipy(rank: int) -> None:
    factors = random_factors(9, rank)
    distance = pabs_distance(factors)
    for i in range(9):
        for j in range(9):
            expected = sum(subspace_angles(f[i].numpy(), f[j].numpy())[0] for f in factors)
            assert distance[i, j].item() == pytest.approx(expected, abs=1e-11)


def test_pabs_is_symmetric_and_blind_to_the_basis() -> None:
    factors = random_factors(12, 3)
    distance = pabs_distance(factors)
    assert torch.equal(distance, distance.T)
    assert (distance.diagonal() == 0).all()
    assert distance.min() >= 0
    mixed = tuple(f @ torch.linalg.qr(torch.randn(12, 3, 3, dtype=torch.float64)).Q * 3 for f in factors)
    torch.testing.assert_close(pabs_distance(mixed), distance, rtol=0, atol=1e-6)


def test_spaces_of_different_dimension_and_zero_filters() -> None:
    factors = torch.zeros(4, 5, 3, dtype=torch.float64)
    factors[0, :3] = torch.eye(3)
    factors[1, 0, 0] = 2  # a line inside the first space
    factors[2, 4, 0] = 1  # a line orthogonal to both
    cosine = largest_principal_angle(factors).cos()
    expected = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(cosine, expected)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        reference = math.cos(subspace_angles(factors[i].numpy(), factors[j].numpy())[0])
        assert cosine[i, j].item() == pytest.approx(reference, abs=1e-12)


def test_blocks_of_pairs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = random_factors(20, 2)
    whole = pabs_distance(factors)
    monkeypatch.setattr("norton_det.pruning.subspace_angles._PAIRS", 1)
    torch.testing.assert_close(pabs_distance(factors), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("gap", [0.0, 1e-10, 1e-8, 1e-6, 1e-3, 0.1])
def test_near_duplicates_have_the_angles_of_the_definition(gap: float, rank: int) -> None:
    first = torch.randn(6, 16, rank, dtype=torch.float64)
    factors = torch.cat([first, first @ torch.randn(6, rank, rank, dtype=torch.float64)])
    factors[6:] += gap * torch.randn(6, 16, rank, dtype=torch.float64)
    factors[0, :, -1] = factors[0, :, 0]  # a space of fewer dimensions, in and near larger ones
    angles = largest_principal_angle(factors)
    expected = torch.eye(12, dtype=torch.float64)
    for i, j in itertools.combinations(range(12), 2):
        expected[i, j] = expected[j, i] = float(subspace_angles(factors[i].numpy(), factors[j].numpy())[0])
    torch.testing.assert_close(angles, expected.fill_diagonal_(0), rtol=1e-7, atol=1e-12)
    assert eliminate(angles, 6).tolist() == eliminate(expected, 6).tolist() or gap == 0


@pytest.mark.parametrize("distinct", ["near", "equal", "orthogonal"])
def test_angles_are_exact_where_cosines_repeat(distinct: str) -> None:
    basis = torch.linalg.qr(torch.randn(40, 16, 8, dtype=torch.float64)).Q
    turned = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    angle = {"near": 1e-5, "equal": 0.7, "orthogonal": math.pi / 2}[distinct]
    planes = torch.stack([basis[0, :, :4], math.cos(angle) * basis[0, :, :4] + math.sin(angle) * basis[0, :, 4:]])
    got = largest_principal_angle(turned @ planes)[0, 1].item()
    assert got == pytest.approx(angle, abs=1e-12, rel=1e-9)


def test_spaces_that_fill_everything_are_told_apart_by_the_norm() -> None:
    conv = nn.Conv2d(3, 12, 3)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(12).view(-1, 1, 1, 1))
    by_norm = CRITERIA["norm"].select([Filters(conv.weight)], 5, Generator()).tolist()
    block = nd.CPConv2d.from_conv(conv, 4)
    for criterion in ("pabs", "csa"):
        kept, used = select_channels([block], 5, criterion, Generator())
        assert (kept.tolist(), used) == (by_norm, "norm")
        assert select_channels([nd.CPConv2d.from_conv(conv, 2)], 5, criterion, Generator())[1] == criterion
    # What has nothing to do with the angles does: ties within a group that is told apart.
    assert eliminate(torch.zeros(12, 12), 5, norms([Filters(conv.weight)])).tolist() == by_norm


def test_of_twins_the_smaller_goes() -> None:
    factors = random_factors(8, 2)
    for factor in factors:
        factor[5] = factor[2]
    weight = torch.randn(8, 4)
    for larger, smaller in ((2, 5), (5, 2)):
        weight[larger], weight[smaller] = 9, 3
        kept = CRITERIA["pabs"].select([Filters(weight, factors)], 7, Generator()).tolist()
        assert kept == [i for i in range(8) if i != smaller]


def test_csa_is_cos_squared_of_the_first_mode() -> None:
    factors = random_factors(6, 2)
    similarity = csa_similarity(factors)
    angle = subspace_angles(factors[0][1].numpy(), factors[0][4].numpy())[0]
    assert similarity[1, 4].item() == pytest.approx(math.cos(angle) ** 2, abs=1e-9)
    assert (similarity.diagonal() == 1).all()


def test_vbd_by_hand() -> None:
    factors = random_factors(6, 2)
    x, y = (factors[0][i].flatten().numpy() for i in (2, 5))
    expected = np.var(x - y) / (np.var(x) + np.var(y))
    assert vbd_distance(factors)[2, 5].item() == pytest.approx(expected)
    opposite = torch.stack([factors[0][0], -factors[0][0], torch.zeros(16, 2), torch.ones(16, 2)])
    distance = vbd_distance((opposite,))
    assert distance[0, 1].item() == pytest.approx(2)
    assert distance[2, 3] == 0


def naive_elimination(distance: Tensor, keep: int) -> list[int]:
    left = list(range(len(distance)))
    while len(left) > keep:
        pairs = [(distance[i, j].item(), i, j) for i in left for j in left if i < j]
        _, i, j = min(pairs)
        sums = {k: sum(distance[k, m].item() for m in left if m != k) for k in (i, j)}
        left.remove(i if sums[i] < sums[j] else j)
    return left


@pytest.mark.parametrize("keep", [1, 5, 29, 30])
def test_elimination_equals_the_naive_one(keep: int) -> None:
    distance = torch.rand(30, 30, dtype=torch.float64)
    distance = distance + distance.T
    assert eliminate(distance, keep).tolist() == naive_elimination(distance, keep)


def test_elimination_on_ties_is_deterministic_and_exact() -> None:
    for distance in (torch.ones(10, 10), torch.zeros(10, 10)):
        kept = eliminate(distance, 4)
        assert kept.tolist() == eliminate(distance.clone(), 4).tolist() == sorted(set(kept.tolist()))
        assert len(kept) == 4


@pytest.mark.parametrize("name", list(CRITERIA))
def test_every_criterion_keeps_the_given_number(name: str) -> None:
    writers = [Filters(torch.randn(20, 8, 3, 3), random_factors(20, 2)) for _ in range(2)]
    for keep in (1, 7, 20):
        kept = CRITERIA[name].select(writers, keep, Generator().manual_seed(0))
        again = CRITERIA[name].select(writers, keep, Generator().manual_seed(0))
        assert kept.tolist() == again.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == keep
        assert kept.max() < 20


@pytest.mark.parametrize("name", ["pabs", "csa", "vbd"])
def test_twins_go_first_and_orthogonal_filters_stay(name: str) -> None:
    first = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:, :6].T.unsqueeze(-1)  # six orthogonal lines
    first = torch.cat([first, first[:1] * 2])  # and a twin of the first
    same = torch.ones(7, 3, 1, dtype=torch.float64)
    kept = CRITERIA[name].select([Filters(torch.ones(7, 1), (first, same, same))], 6, Generator())
    assert set(range(1, 6)) < set(kept.tolist())


def test_norm_keeps_the_largest_over_all_writers() -> None:
    small, large = torch.ones(4, 2), torch.tensor([[0.0], [3.0], [0.0], [4.0]])
    kept = CRITERIA["norm"].select([Filters(small), Filters(large)], 2, Generator())
    assert kept.tolist() == [1, 3]


def test_an_unknown_criterion() -> None:
    message = "unknown criterion 'l3'; expected one of: csa, norm, pabs, random, vbd"
    with pytest.raises(UsageError, match=message):
        CRITERIA.check("l3")
    with pytest.raises(UsageError, match=message):
        CRITERIA["l3"].select([], 1, Generator())
    CRITERIA.check("pabs")
