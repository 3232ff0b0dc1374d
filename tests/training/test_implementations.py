"""The implementations in which networks train: chosen by measuring, equal in all else."""

import copy
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import norton_det as nd
from norton_det.decompositions import CPConv2d
from norton_det.errors import UsageError
from norton_det.runtime import timing
from norton_det.structure.settings import spec_from_configuration
from norton_det.training.batch_norm import WideBatchNorm2d
from norton_det.training.implementations import set_fastest_implementations, set_implementations, use_implementation


def implementations_of(net: nn.Module) -> dict[str, str]:
    return {name: block.implementation for name, block in net.named_modules() if isinstance(block, CPConv2d)}


def test_the_fastest_implementation_of_each_block_is_set(caplog: pytest.LogCaptureFixture) -> None:
    net = nd.build(spec_from_configuration("vgg16_bn_cifar", 1, "[0.9]*13")).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="norton_det"):  # other tests lower it
        choices = set_fastest_implementations(net, torch.randn(2, 3, 32, 32), repeats=1)
    assert len(choices) == 13
    assert all(choice.milliseconds[choice.implementation] == min(choice.milliseconds.values()) for choice in choices)
    assert implementations_of(net) == {choice.name: choice.implementation for choice in choices}
    assert "training implementations: " in caplog.text
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("failing", [False, True])
def test_the_network_is_as_before_but_for_the_choices(failing: bool) -> None:
    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if failing:
                raise RuntimeError("out of memory")
            return x

    net = nn.Sequential(
        CPConv2d(3, 4, 3, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), CPConv2d(4, 4, 3, 1)), Last()
    )
    net[1].eval()  # the mode of a part is its own
    modes = [module.training for module in net.modules()]
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="out of memory") if failing else nullcontext():
        set_fastest_implementations(net, images, repeats=1)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    assert not failing or set(implementations_of(net).values()) == {"factored"}


def test_what_was_chosen_before_is_set_again() -> None:
    net = nn.Sequential(CPConv2d(3, 4, 3, 1), CPConv2d(4, 4, 3, 1))
    kept = {"0": "merged", "1": "dense"}
    assert use_implementation(net, "auto", lambda: pytest.fail("measured"), kept=kept) == kept
    assert implementations_of(net) == kept
    assert use_implementation(net, "factored", lambda: pytest.fail("measured")) == {}
    assert set(implementations_of(net).values()) == {"factored"}
    with pytest.raises(UsageError, match="unknown implementation 'fast'"):
        use_implementation(net, "fast", lambda: None)
    with pytest.raises(UsageError, match="implementation of '2': no such layer with implementations"):
        set_implementations(net, {"2": "dense"})
    with pytest.raises(
        UsageError, match="unknown implementation of '1': 'wide'; expected one of: factored, depthwise, merged, dense"
    ):
        set_implementations(net, {"1": "wide"})


def test_what_cannot_be_the_fastest_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = [0.0], Counter[str]()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def taking(name: str, *seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds[min(runs[name], len(seconds) - 1)]
            runs[name] += 1

        return run

    functions = {"fast": taking("fast", 1), "cold": taking("cold", 4, 0.5), "slow": taking("slow", 6)}
    assert timing.time_contenders(functions, 3) == {"fast": 1, "cold": 0.5, "slow": 6}
    assert runs == {"fast": 4, "cold": 4, "slow": 1}


def norms(
    momentum: float | None = 0.1, channels: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Return torch's batch norm and a wide one in the same state."""
    known = nn.BatchNorm2d(channels, momentum=momentum, dtype=dtype)
    for tensor in known.parameters():
        nn.init.uniform_(tensor, 0.5, 2)
    wide = copy.deepcopy(known)
    set_implementations(nn.Sequential(wide), {"0": "wide"})
    assert type(wide) is WideBatchNorm2d
    return known, wide


def maps(*shape: int) -> torch.Tensor:
    x = 5 + torch.randn(*shape, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(4, 13, 6, 8), (3, 5, 7, 5), (2, 2, 1, 3), (1, 16, 4, 4)], ids=str)
def test_a_wide_batch_norm_is_that_of_torch(shape: tuple[int, ...], momentum: float | None) -> None:
    known, wide = norms(momentum, shape[1])
    for _ in range(2):
        x = maps(*shape)
        weights = torch.randn(shape, dtype=torch.float64)  # of the outputs in what is differentiated
        expected, got = known(x), wide(x)
        assert "Wide" in type(got.grad_fn).__name__
        assert got.is_contiguous(memory_format=torch.channels_last)
        expected, got = expected.relu(), got.relu_()
        torch.testing.assert_close(got, expected)
        wanted = torch.autograd.grad((expected * weights).sum(), [x, *known.parameters()])
        found = torch.autograd.grad((got * weights).sum(), [x, *wide.parameters()])
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for name, tensor in known.state_dict().items():
        torch.testing.assert_close(wide.state_dict()[name], tensor)


def test_a_wide_batch_norm_leaves_the_rest_to_torch() -> None:
    x = maps(4, 5, 3, 3)
    for inputs in (x.contiguous(), x.bfloat16()):  # another memory format, mixed precision
        known, wide = norms(dtype=torch.float64 if inputs.dtype == torch.float64 else torch.float32)
        assert torch.equal(wide(inputs), known(inputs))
    known, wide = norms()
    assert torch.equal(wide.eval()(x), known.eval()(x))


def test_batch_norms_have_implementations_in_channels_last_only() -> None:
    net = nd.build(spec_from_configuration("resnet56_cifar", 1, "[0.9]*30")).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    choices = set_fastest_implementations(net, images, repeats=1)
    assert len(choices) == 55
    assert all(set(choice.milliseconds) == set(CPConv2d.implementations) for choice in choices)
    choices = set_fastest_implementations(net, images, memory_format=torch.channels_last, repeats=1)
    assert [set(choice.milliseconds) for choice in choices].count({"torch", "wide"}) == 55
    wide = [name for name, module in net.named_modules() if type(module) is WideBatchNorm2d]
    assert wide == [choice.name for choice in choices if choice.implementation == "wide"]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_somebodys_own_batch_norm_stays() -> None:
    class Own(nn.BatchNorm2d):
        """Not one of ours."""

    net = nn.Sequential(CPConv2d(3, 4, 3, 1), Own(4))
    choices = set_fastest_implementations(net, torch.randn(2, 3, 8, 8), memory_format=torch.channels_last, repeats=1)
    assert [choice.name for choice in choices] == ["0"]
