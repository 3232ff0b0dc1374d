"""Images a few at a time, what is kept between passes, and the limits of both: the result is that of one go."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.calibration import cuts, layerwise
from norton_det.calibration.cuts import cuts_of
from norton_det.calibration.kept import Recording, returning
from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.linear_map import matrix_of
from norton_det.calibration.moments import Moments
from norton_det.channels.narrow import narrow_network
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.models import ARCHITECTURES
from norton_det.search import outputs as search_outputs
from norton_det.search.sensitivity import measure
from norton_det.structure.describe import described

DETECTOR = "keypointrcnn_cpresnet50_fpn"
UNLIMITED = 2**40
CONVS = (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 5, (1, 3), stride=2), nn.ConvTranspose2d(3, 2, 2, 2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 13), max_size=4), st.sampled_from(CONVS), st.integers(1, 3), st.integers(1, 2))
def test_moments_of_parts_are_those_of_one_go(where: list[int], layer: Any, calls: int, each: int) -> None:
    torch.manual_seed(0)
    x = [torch.randn(13 * each, layer.in_channels, 6 + call, 8) for call in range(calls)]
    with torch.no_grad():
        y = [layer(of_call) + torch.randn_like(layer(of_call)) for of_call in x]
    results = []
    for bounds in ([0, 13], [0, *sorted(where), 13]):
        moments = Moments(layer, 3, calls)
        for start, stop in pairwise(bounds):
            rows = slice(start * each, stop * each)
            for call in range(calls):
                moments.add(x[call][rows], y[call][rows], range(start, stop), call)
        problem = moments.regression(matrix_of(layer))
        results.append([*moments.means(), problem.solution(), problem.metric, problem.power])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


class Block(nn.Module):
    """A residual block that changes tensors in place."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return y.add_(x).relu_()


class Residual(nn.Module):
    """A small network of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Conv2d(3, 8, 3), nn.Sequential(Block(8, 4), Block(8, 6)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x).relu_()).mean((2, 3)))


def residual() -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Return a network that is compressed, the dense one, and the other arguments of a calibration."""
    torch.manual_seed(0)
    dense = Residual().double()
    dense(torch.randn(16, 3, 12, 12, dtype=torch.float64))
    layers = [nd.Layer("stem", (), "sum")]
    for i in range(2):
        conv1, bn1, conv2, bn2 = (f"blocks.{i}.{name}" for name in ("conv1", "bn1", "conv2", "bn2"))
        layers += [nd.Layer(conv1, ("sum",), conv1), nd.Layer.norm(bn1, (conv1,))]
        layers += [nd.Layer(conv2, (conv1,), "sum"), nd.Layer.norm(bn2, ("sum",))]
    widths = {"sum": 8, "blocks.0.conv1": 4, "blocks.1.conv1": 6}
    plan = nd.ChannelPlan(widths, (*layers, nd.Layer("fc", ("sum",))))
    kept = {"sum": torch.tensor([0, 1, 3, 4, 6, 7]), "blocks.1.conv1": torch.tensor([1, 2, 4])}
    net = copy.deepcopy(dense.eval())
    net.blocks[0].conv2 = DECOMPOSITIONS["tucker2"].from_layer(net.blocks[0].conv2, 3)
    narrow_network(net, plan, kept)
    return net, dense, {"plan": plan, "kept": kept, "images": torch.randn(5, 3, 12, 12, dtype=torch.float64)}


def detector() -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Return the same of a whole detector."""
    torch.manual_seed(0)
    net, spec = make_detector(DETECTOR, num_classes=2, **TINY)
    dense, spec = nd.prune(net, spec, "[0.9]*60", criterion="random", scope="detector")
    plan = described(dense, ARCHITECTURES[DETECTOR], spec).plan
    kept = {group: torch.arange(plan.widths[group] - 5) for group in ("fpn", "fpn.inner", "layer2")}
    net = copy.deepcopy(dense.double().eval())
    narrow_network(net, plan, kept)
    sample = [torch.rand(3, 64, 64) for _ in range(3)]
    regions = ARCHITECTURES[DETECTOR].task.regions_of(dense, sample)
    return net, dense, {"plan": plan, "kept": kept, "images": sample, "regions": regions}


@pytest.mark.parametrize("make", [residual, pytest.param(detector, marks=pytest.mark.slow)])
def test_the_result_depends_on_neither_limit(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for numbers, limit in ((UNLIMITED, UNLIMITED), (1, UNLIMITED), (1, 0), (2**11, 2**11)):
        monkeypatch.setattr(layerwise, "_NUMBERS", numbers)
        monkeypatch.setattr(cuts, "KEPT", limit)
        net, dense, arguments = make()
        calibrate(net, dense, **arguments)
        results.append(net.state_dict())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)
    changed = [name for name, before in make()[0].state_dict().items() if not torch.equal(before, other[name])]
    assert len(changed) > len(other) / 4


@pytest.mark.parametrize("limit", [0, 2**13, UNLIMITED])
def test_what_is_kept_is_within_the_limit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "KEPT", limit)
    monkeypatch.setattr(layerwise, "_NUMBERS", 1)  # an image at a time
    kept: dict[tuple[range, nn.Module], int] = {}
    largest, after = [0], layerwise._pass

    def counting(fit: Any, step: Any, chunk: Any, *cuts: Any) -> None:
        after(fit, step, chunk, *cuts)
        for net, outputs in chunk.outputs.items():
            tensors = [output for calls in outputs.values() for output in calls if not output.is_meta]
            kept[chunk.images, net] = sum(output.numel() for output in tensors)
        for model in (fit.net, fit.reference):
            largest[0] = max(largest[0], sum(numbers for (_, net), numbers in kept.items() if net is model))

    monkeypatch.setattr(layerwise, "_pass", counting)
    net, dense, arguments = residual()
    calibrate(net, dense, **arguments)
    assert largest[0] <= limit
    assert largest[0] >= min(limit, 2**12), "it is made use of"


def test_a_pass_is_of_a_few_images_and_computes_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    net, dense, arguments = residual()
    monkeypatch.setattr(layerwise, "_NUMBERS", 2 * 8 * 10 * 10)  # two images at a time
    rows: dict[str, list[int]] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and "blocks.1" in name:
            layer.register_forward_hook(
                lambda _, args, output, name=name: rows.setdefault(name, []).append(len(output))
            )
    calibrate(net, dense, **arguments)
    assert rows == {"blocks.1.conv1": [2, 2, 1] * 2, "blocks.1.conv2": [2, 2, 1]}


def test_cuts_keep_what_is_read_and_nothing_else() -> None:
    _, net, arguments = residual()
    x = arguments["images"]
    convs = [f"blocks.{i}.{name}" for i in range(2) for name in ("conv1", "conv2")]
    with torch.no_grad():
        found = cuts_of(net, ["stem", *convs, "fc"], lambda model: model(x[:1]), len(x))
        assert [(set(cut.kept), set(cut.passed)) for cut in found.before] == [
            (set(), set()),
            ({"stem"}, set()),
            ({"stem", convs[0]}, set()),
            ({"blocks.0"}, {"stem"}),
            ({"blocks.0", convs[2]}, {"stem"}),
            ({"blocks"}, {"stem"}),
            ({"fc"}, {"blocks", "stem"}),
        ]
        expected = net(x)
        for cut in found.before:
            recording = Recording(net, cut, found.calls)
            with recording():
                net(x)
            assert recording.is_complete
            for _ in range(2):  # what follows does not change what is kept
                with returning(net, cut.of(recording.outputs)):
                    assert torch.equal(net(x), expected)
            assert torch.equal(net(x), expected)


@pytest.mark.slow
def test_choices_are_measured_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense, _ = make_detector("fasterrcnn_cpresnet50_fpn", num_classes=2, **TINY)
    network = described(dense, ARCHITECTURES["fasterrcnn_cpresnet50_fpn"].scoped("backbone"))
    rows: list[int] = []
    dense.backbone.body.conv1.register_forward_hook(lambda _, args, output: rows.append(len(output)))
    monkeypatch.setattr(search_outputs, "_PIXELS", 2 * 64 * 64)
    measure(network, [torch.rand(3, 64, 64) for _ in range(5)], decomposition="svd", criterion="norm")
    assert max(rows) == 2
