"""Layers that run several times are fitted to all their calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import norton_det as nd
from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.lockstep import observed
from norton_det.calibration.moments import POSITIONS
from norton_det.calibration.schedule import schedule
from norton_det.channels.narrow import narrow_network
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import UsageError
from norton_det.linalg.least_squares import RIDGES

SHARED = ("conv", "score", "box")
PLAN = nd.ChannelPlan(
    {"stem": 6, "conv": 8},
    (
        nd.Layer("stem", (), "stem"),
        nd.Layer("conv", ("stem",), "conv"),
        nd.Layer("score", ("conv",)),
        nd.Layer("box", ("conv",)),
    ),
)


class Levels(nn.Module):
    """A network with a head that runs on three levels, one after another, as an RPN's does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.score, self.box = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        x = self.stem(x)
        for side in (4, 3, 2):
            hidden = self.conv(F.adaptive_avg_pool2d(x, side)).relu()
            outputs += [self.score(hidden).flatten(1), self.box(hidden).flatten(1)]
        return torch.cat(outputs, 1)


@pytest.fixture
def net() -> Levels:
    torch.manual_seed(0)
    return Levels().double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 16, 16, dtype=torch.float64)


def calls(net: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unfolded inputs and the outputs of all calls of a layer, one row each."""
    conv = net.get_submodule(name)
    with observed(net, [name], lambda model: model(images)) as passing:
        found = list(passing)
    assert all(call.output[0, 0].numel() <= POSITIONS // 3 for call in found), "every position is used"
    x = [F.unfold(call.inputs, conv.kernel_size, padding=conv.padding).movedim(1, 2).flatten(0, 1) for call in found]
    return torch.cat(x), torch.cat([call.output.movedim(1, 3).flatten(0, 2) for call in found])


def test_layers_follow_those_that_are_shared(net: Levels, images: Tensor) -> None:
    order = schedule(net, ["box", "score", "conv", "stem"], lambda model: model(images[:1]))
    assert list(order.items()) == [("stem", 1), ("conv", 3), ("score", 3), ("box", 3)]


def test_a_shared_layer_is_the_best_for_all_its_calls(net: Levels, images: Tensor) -> None:
    kept = {"stem": torch.tensor([0, 2, 3, 5])}
    narrow = copy.deepcopy(net)
    narrow_network(narrow, PLAN, kept)
    prior = narrow.conv.weight.detach().flatten(1)
    fitted = copy.deepcopy(narrow)
    report = calibrate(fitted, net, PLAN, kept, images)
    x, y = calls(fitted, "conv", images)[0], calls(net, "conv", images)[1]
    x, y, mean_x, mean_y = x - x.mean(0), y - y.mean(0), x.mean(0), y.mean(0)
    errors = []
    for ridge in RIDGES:
        damping = (ridge * x.square().mean() * len(x)).sqrt() * torch.eye(x.shape[1], dtype=torch.float64)
        right = torch.cat([y - x @ prior.mT, torch.zeros(len(damping), len(prior), dtype=torch.float64)])
        brute = prior + torch.linalg.lstsq(torch.cat([x, damping]), right).solution.mT
        errors.append((brute - fitted.conv.weight.detach().flatten(1)).abs().max().item())
        if errors[-1] < 1e-9:
            torch.testing.assert_close(fitted.conv.bias.detach(), mean_y - brute @ mean_x)
            assert report["conv"]["fitted"] == pytest.approx(
                ((x @ brute.mT - y).square().sum() / y.square().sum()).item()
            )
    assert min(errors) < 1e-9, errors


@pytest.mark.parametrize("method", list(DECOMPOSITIONS))
def test_full_rank_comes_back_exactly(net: Levels, images: Tensor, method: str) -> None:
    exact = copy.deepcopy(net)
    exact.conv = DECOMPOSITIONS[method].from_layer(net.conv, 9 if method == "cp" else 8)
    report = calibrate(exact, net, PLAN, {}, images)
    assert all(abs(layer["fitted"]) < 1e-9 for layer in report.values())
    torch.testing.assert_close(exact(images), net(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", list(DECOMPOSITIONS))
def test_every_layer_comes_nearer_and_the_same_seed_repeats(net: Levels, images: Tensor, method: str) -> None:
    plain = copy.deepcopy(net)
    plain.conv = DECOMPOSITIONS[method].from_layer(net.conv, 1)
    results = []
    for _ in range(2):
        fitted = copy.deepcopy(plain)
        report = calibrate(fitted, net, PLAN, {}, images, seed=3)
        results.append(fitted(images))
    assert set(report) == {"stem", *SHARED}
    assert all(layer["fitted"] <= layer["plain"] + 1e-9 for layer in report.values())
    assert torch.equal(*results)
    assert (results[0] - net(images)).norm() < (plain(images) - net(images)).norm()


class Alternating(nn.Module):
    """A network with two layers that run in turn, each on outputs of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.back(self.there(x).relu())
        return x


def test_layers_on_their_own_outputs_are_refused() -> None:
    net = Alternating()
    with pytest.raises(UsageError, match="layer 'there' runs 2 times in one pass, on inputs that depend on its own"):
        schedule(net, ["there", "back"], lambda model: model(torch.randn(1, 4)))


def test_a_layer_that_never_runs_is_refused(net: Levels, images: Tensor) -> None:
    net.idle = nn.Conv2d(3, 3, 1).double()
    with pytest.raises(UsageError, match="layer 'idle' runs 0 times in one pass; expected at least once"):
        calibrate(copy.deepcopy(net), net, PLAN, {}, images, outside=["idle"])


class Tokens(nn.Module):
    """A network whose linear layer reads one row for each position of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.stem(x).flatten(2).mT)


def test_a_linear_layer_on_rows_of_positions_is_refused_by_name() -> None:
    plan = nd.ChannelPlan({"stem": 6}, (nd.Layer("stem", (), "stem"), nd.Layer("mix", ("stem",))))
    net = Tokens().eval()
    with pytest.raises(UsageError, match=r"layer 'mix' reads inputs of shape \(2, 4, 6\); .* one row for each image"):
        calibrate(net, copy.deepcopy(net), plan, {}, torch.randn(2, 3, 8, 8))
