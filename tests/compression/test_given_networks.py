"""What a user's network has beside its weights: frozen layers, modes, hooks, wrappers, shared tensors, a history."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import norton_det as nd
from norton_det.models import ARCHITECTURES
from norton_det.runtime.given import refuse_shared, unwrapped

LAW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


class Small(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        convs = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
        convs += [nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        convs += [nn.Conv2d(8, 8, 3, padding=1)]
        super().__init__(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


CONVS = ("0", "3", "6")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    layers = (nd.Layer("0", (), "a"), nd.Layer.norm("1", ("a",)), nd.Layer("3", ("a",), "b"))
    layers += (nd.Layer.norm("4", ("b",)), nd.Layer("6", ("b",), "c"), nd.Layer("9", ("c",)))
    rates = tuple(nd.RateEntry(group, (group,)) for group in "abc")
    plan = nd.ChannelPlan({"a": 6, "b": 8, "c": 8}, layers)
    nd.register_architecture(nd.Architecture("small", Small, plan, rates, 10, 8, "9", dataset="cifar10"))


IMAGES = torch.rand(4, 3, 8, 8)
ROUTES: dict[str, Callable[..., tuple[nn.Module, nd.Spec]]] = {
    "cp": lambda net: nd.compress(net, arch="small", rank=1, rates=[0.5] * 3),
    "tucker2": lambda net: nd.compress(net, arch="small", rank=2, rates=[0.5] * 3, decomposition="tucker2"),
    "svd": lambda net: nd.compress(
        net, arch="small", rank={"0": 2, "3": 2, "6": 2, "9": 2}, rates=[0.5] * 3, decomposition="svd"
    ),
    "calibrated": lambda net: nd.compress(net, arch="small", rank=1, rates=[0.5] * 3, calibration=IMAGES),
    "decompose": lambda net: nd.decompose(net, "small", 1),
    "prune": lambda net: nd.prune(net, "small", [0.5] * 3, criterion="norm"),
}
NAMES = sorted(name for name, _ in Small(3).named_parameters())


def source_of(name: str) -> str:
    """Return the parameter of the dense network from which one of the compressed network comes."""
    layer, *rest = name.split(".")
    return f"{layer}.bias" if rest == ["bias"] else f"{layer}.weight"


@LAW
@given(frozen=st.sets(st.sampled_from(NAMES)), route=st.sampled_from(sorted(ROUTES)))
def test_what_is_frozen_stays_frozen(frozen: set[str], route: str) -> None:
    net = Small(3)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    compressed, _ = ROUTES[route](net)
    flags = {name: parameter.requires_grad for name, parameter in compressed.named_parameters()}
    assert flags == {name: source_of(name) not in frozen for name in flags}
    assert {source_of(name) for name in flags} == set(NAMES)
    assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == frozen


@LAW
@given(training=st.sets(st.sampled_from("013469")), route=st.sampled_from(sorted(ROUTES)))
def test_each_layer_stays_in_its_mode(training: set[str], route: str) -> None:
    net = Small(3).eval()
    for name in training:
        net.get_submodule(name).train()
    compressed, _ = ROUTES[route](net)
    for name, module in compressed.named_modules():
        if name:
            assert module.training == (name.split(".")[0] in training), name


@LAW
@given(hooked=st.sets(st.sampled_from(CONVS)), route=st.sampled_from(sorted(ROUTES)))
def test_hooks_run_on_what_replaces_a_layer(hooked: set[str], route: str) -> None:
    net, calls = Small(3), []

    def note(kind: str, name: str) -> Callable[..., None]:
        return lambda *_: calls.append((kind, name))

    for name in hooked:
        layer = net.get_submodule(name)
        layer.register_forward_hook(note("forward", name))
        layer.register_forward_pre_hook(note("forward_pre", name))
        layer.register_forward_hook(note("with_kwargs", name), with_kwargs=True)
        layer.register_full_backward_hook(note("backward", name))
        layer.register_full_backward_pre_hook(note("backward_pre", name))
    compressed, _ = ROUTES[route](net)
    calls.clear()
    compressed(IMAGES.clone().requires_grad_()).sum().backward()
    kinds = ("forward", "forward_pre", "with_kwargs", "backward", "backward_pre")
    assert sorted(calls) == sorted((kind, name) for kind in kinds for name in hooked)


def test_hooks_that_change_the_output_still_do() -> None:
    net = Small(3).eval()
    exact, _ = nd.decompose(net, "small", 9)
    net[3].register_forward_hook(lambda module, args, output: output * 2)
    doubled, _ = nd.decompose(net, "small", 9)
    assert torch.allclose(doubled(IMAGES), net(IMAGES), atol=1e-4)
    assert not torch.allclose(doubled(IMAGES), exact(IMAGES), atol=1e-4)


def test_hooks_of_state_dicts_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    net = Small(3)
    net[3].register_state_dict_post_hook(lambda *_: None)
    nd.decompose(net, "small", 1)
    assert "layer '3': its state_dict_hooks are lost" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, AveragedModel, torch.compile, lambda net: torch.compile(AveragedModel(net))],
    ids=["DataParallel", "AveragedModel", "compile", "both"],
)
@pytest.mark.parametrize("route", sorted(ROUTES))
def test_wrappers_are_taken_off(
    wrap: Callable[[nn.Module], nn.Module], route: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = Small(3)
    expected, spec = ROUTES[route](net)
    wrapped = wrap(net)
    with caplog.at_level(logging.INFO):
        compressed, again = ROUTES[route](wrapped)
    assert type(compressed) is Small
    assert again == spec
    state: dict[str, Tensor] = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in compressed.state_dict().items())
    assert f"the model is a {type(wrapped).__name__}: the " in caplog.text


def test_a_wrapped_network_is_not_changed() -> None:
    net = Small(3)
    plain, _ = nd.compress(nn.DataParallel(net), arch="small")
    assert plain is not net
    assert unwrapped(nn.DataParallel(net)) is net
    assert unwrapped(net) is net


def tie(how: str) -> nn.Module:
    net = Small(3)
    if how == "module":
        net[3] = nn.Conv2d(8, 8, 3, padding=1)
        net[6] = net[3]
    elif how == "parameter":
        net[6].bias = net[9].bias = nn.Parameter(torch.zeros(8))
    else:
        net[4].running_mean = net[4].running_var
    return net


SHARED = {
    "module": "'3' and '6' are one module",
    "parameter": "'6.bias' and '9.bias' are one tensor",
    "buffer": "'4.running_mean' and '4.running_var' are one tensor",
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("how", SHARED)
def test_what_is_shared_is_refused_by_both_names(how: str, device: str, refused: Refused) -> None:
    with torch.device(device):
        net = tie(how)
    refused(lambda: refuse_shared(net), 2, SHARED[how])
    for route in ROUTES.values():
        refused(lambda route=route: route(net), 2, SHARED[how])


def test_a_network_of_its_own_tensors_shares_nothing() -> None:
    for arch in ("resnet50", "densenet40_cifar", "keypointrcnn_cpresnet50_fpn"):
        with torch.device("meta"):
            refuse_shared(ARCHITECTURES[arch].build())
    refuse_shared(Small(3))


def test_another_rank_than_before_is_refused_by_name(refused: Refused) -> None:
    twice, spec = nd.decompose(Small(3), "small", 2)
    both = "layer '0' and 2 others are decomposed already (cp, rank 2)"
    refused(lambda: nd.decompose(twice, spec, 1), 2, both, "expected the dense network")
    refused(lambda: nd.compress(twice, arch=spec, rank=1, rates=[0.5] * 3), 2, both)
    refused(lambda: nd.decompose(twice, spec, "[1]*3"), 2, both)
    refused(lambda: nd.decompose(twice, spec, 2, method="tucker2"), 2, both)
    refused(lambda: nd.decompose(twice, spec, {"0": 1}), 2, "'0' is a CPConv2d")
    part, spec = nd.decompose(Small(3), "small", {"3": 2})
    refused(lambda: nd.decompose(part, spec, 1), 2, "layer '3' is decomposed already (cp, rank 2)")


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("method", ["cp", "tucker2"])
def test_the_same_rank_again_changes_nothing(method: str, rank: int) -> None:
    once, spec = nd.decompose(Small(3), "small", rank, method=method)
    again, after = nd.decompose(once, spec, rank, method=method)
    state: dict[str, Any] = once.state_dict()
    assert after == spec
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_the_rest_by_another_method_leaves_what_there_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    part, spec = nd.decompose(Small(3), "small", {"3": 2}, method="tucker2")
    _, after = nd.decompose(part, spec, 1)
    assert after.ranks == {"0": 1, "3": (2, 2), "6": 1}
    assert "layer '3' is decomposed already (tucker2, rank (2, 2)) and left so" in caplog.text
    _, described = nd.decompose(part, "small", "[1]*2")
    assert described.provenance["decompose"]["skipped"]["3"] == "decomposed already (tucker2, rank (2, 2))"


def test_pruning_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    once, spec = nd.prune(Small(3), "small", [0.5, 0.0, 0.0])
    assert caplog.text == ""
    nd.prune(once, spec, [0.0, 0.25, 0.25])
    assert caplog.text == ""
    _, after = nd.compress(once, arch=spec, rates=[0.4, 0.5, 0.0], criterion="norm")
    message = "rates are relative to its present widths (group a: 3 of 6 channels, now 1); 1 groups are narrowed again"
    assert message in caplog.text
    assert dict(after.widths) == {"a": 1, "b": 4}
    step = after.provenance["prune"]
    assert (step["rates"], step["before"]["rates"]) == ([0.4, 0.5, 0.0], [0.5, 0.0, 0.0])
    assert "before" not in step["before"]
