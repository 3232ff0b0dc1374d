"""A calibration leaves hooks, modes and implementations as they were, also where it fails."""

import threading
from contextlib import nullcontext

import pytest
import torch
from correlated import images, network
from torch import Tensor, nn

import norton_det as nd
from norton_det.calibration.layerwise import calibrate
from norton_det.calibration.lockstep import observed, visit
from norton_det.models import ARCHITECTURES
from norton_det.structure.describe import described


class FailingError(Exception):
    """Raised inside a network."""


def state_of(net: nn.Module) -> list[tuple]:
    """Return what a call may change of each module: hooks, mode, implementation."""
    return [
        (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.training,
            vars(module).get("implementation"),
        )
        for module in net.modules()
    ]


@pytest.mark.parametrize("failing", [None, "compressed", "dense"])
def test_networks_are_as_before_after_a_calibration(failing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, spec = network("resnet56_cifar")
    net, _ = nd.decompose(dense, spec, {"layer1.0.conv1": 1, "layer3.1.conv2": 2})
    for model in (net, dense):
        model.train()
        model.layer2[1].eval()  # the mode of a part is its own
    before = [state_of(net), state_of(dense)]

    kind = type(dense.layer3[1])
    forward = kind.forward

    def fails(self: nn.Module, x: Tensor) -> Tensor:
        if hasattr(self, "failing"):
            raise FailingError
        return forward(self, x)

    monkeypatch.setattr(kind, "forward", fails)
    if failing:
        {"compressed": net, "dense": dense}[failing].layer3[1].failing = True
    threads = threading.active_count()
    with pytest.raises(FailingError) if failing else nullcontext():
        calibrate(net, dense, described(dense, ARCHITECTURES[spec.arch], spec).plan, {}, images(2))
    assert [state_of(net), state_of(dense)] == before
    assert threading.active_count() == threads


def test_no_hook_stays_where_a_layer_does_not_exist() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    with pytest.raises(AttributeError, match="2"), observed(net, ["0", "2"], lambda n: n(torch.randn(1, 2))):
        pytest.fail("opened")
    with pytest.raises(AttributeError, match="2"):
        visit(net, lambda *_: False, lambda *_: None, ["0", "2"], lambda n: n(torch.randn(1, 2)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net)
