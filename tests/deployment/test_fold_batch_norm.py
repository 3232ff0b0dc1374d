"""Which batch norms are folded, why the others stay, and what is left where the network fails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import TINY
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import get_model, resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.deployment.autotune import calls_of
from norton_det.deployment.deploy import deploy
from norton_det.deployment.fold_batch_norm import fold_norms, fold_structure
from norton_det.deployment.followers import followers
from norton_det.errors import UsageError
from norton_det.runtime.outputs import relative_difference


class ActivatedNorm(nn.BatchNorm2d):
    """A norm with an activation in it, as other libraries have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class StandardisedConv(nn.Conv2d):
    """A convolution that uses other weights than it has."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Shared(nn.Module):
    """A norm that is not alone in looking at the convolution before it."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), use

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.use(self.norm(y), y)


class Twice(nn.Module):
    """A convolution that runs twice, with a norm after the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))


class Around(nn.Module):
    """Its weights are used without its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)


class Keeping(nn.Module):
    """Keeps the output of its layer for later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [self.conv(x)]
        return self.norm(self.seen[0])


@dataclass
class Result:
    """What a network may return."""

    tensors: dict[str, Tensor]


class ByName(Around):
    """Calls its norm by the name of the argument."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=self.conv(x))


class ReadsNorm(Around):
    """Reads a parameter of its norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.weight.sum()


class Counting(Around):
    """Keeps a state from one run to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.norm(self.conv(x)) * self.calls


def followed(conv: nn.Module, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, norm, nn.ReLU())


def own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: nn.functional.conv2d(x, layer.weight) * 2
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


IMAGES = (2, 3, 6, 6)
KEPT = {
    "activation in the norm": (
        lambda: followed(nn.Conv2d(3, 4, 3), ActivatedNorm(4)),
        IMAGES,
        "a ActivatedNorm, which",
    ),
    "other weights": (
        lambda: followed(StandardisedConv(3, 4, 3), nn.BatchNorm2d(4)),
        IMAGES,
        "a StandardisedConv;",
    ),
    "other dimension": (lambda: followed(nn.Linear(5, 4), nn.BatchNorm1d(4)), (2, 4, 5), "are not those of 0"),
    "used elsewhere": (lambda: Shared(lambda a, b: a + b), IMAGES, "used elsewhere"),
    "returned": (lambda: Shared(lambda a, b: {"norm": a, "conv": [b]}), IMAGES, "used elsewhere"),
    "returned in an object": (lambda: Shared(lambda a, b: Result({"norm": a, "conv": b})), IMAGES, "used elsewhere"),
    "kept": (Keeping, IMAGES, "used elsewhere"),
    "twice": (Twice, IMAGES, "runs 2 times"),
    "norm read elsewhere": (ReadsNorm, IMAGES, "the outputs on the example would change"),
    "weights used elsewhere": (Around, IMAGES, "the outputs on the example would change"),
    "statistics of the input": (
        lambda: followed(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGES,
        "normalises by the statistics of its input",
    ),
    "weight norm": (
        lambda: followed(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        IMAGES,
        "a ParametrizedConv2d;",
    ),
    "spectral norm": (
        lambda: followed(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        IMAGES,
        "a ParametrizedConv2d;",
    ),
    "parametrised norm": (
        lambda: followed(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.BatchNorm2d(4), dim=None)),
        IMAGES,
        "ParametrizedBatchNorm2d, which",
    ),
    "own forward": (
        lambda: followed(own_forward(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        IMAGES,
        "a Conv2d with a forward of its own;",
    ),
    "hooks": (lambda: followed(hooked(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), IMAGES, "follows 0, which has hooks"),
    "hooks of the norm": (lambda: followed(nn.Conv2d(3, 4, 3), hooked(nn.BatchNorm2d(4))), IMAGES, "has hooks"),
    "transposed": (
        lambda: followed(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
        IMAGES,
        "a ConvTranspose2d;",
    ),
    "before": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), IMAGES, "follows no convolution"),
}
FOLDED = {
    "Conv1d": (lambda: followed(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
    "Conv2d": (lambda: followed(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGES),
    "Conv3d": (lambda: followed(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), (2, 3, 5, 5, 5)),
    "Linear": (lambda: followed(nn.Linear(3, 4), nn.BatchNorm1d(4)), (2, 3)),
    "not affine": (lambda: followed(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGES),
    "frozen": (lambda: followed(nn.Conv2d(3, 4, 3, groups=1), FrozenBatchNorm2d(4, eps=0.0)), IMAGES),
    "grouped": (lambda: followed(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_cannot_be_folded_stays_and_is_listed(case: str) -> None:
    make, shape, reason = KEPT[case]
    torch.manual_seed(0)
    net = with_statistics(make())
    x = torch.randn(shape)
    fast = deploy(net, x, repeats=1)
    with torch.no_grad():
        assert relative_difference(fast(x), net(x)) < 1e-4
    assert fast.deployment.folded == {}
    assert any(reason in listed for listed in fast.deployment.unchanged.values()), fast.deployment.unchanged
    assert all(f"{name} stays as it is" in str(fast.deployment) for name in fast.deployment.unchanged)


@pytest.mark.parametrize("case", FOLDED)
def test_a_norm_is_folded_into_the_layer_before_it(case: str) -> None:
    make, shape = FOLDED[case]
    torch.manual_seed(0)
    net = with_statistics(make())
    x = torch.randn(shape)
    fast = deploy(net, x, repeats=1)
    assert fast.deployment.folded == {"1": "0"}
    assert isinstance(fast[1], nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
    assert fast.deployment.difference < 1e-5


def test_feature_extractors() -> None:
    torch.manual_seed(0)
    net = create_feature_extractor(with_statistics(resnet18()), ["layer1", "layer4"])
    net.train()  # what deploy is given in training mode it returns in evaluation mode
    x = torch.randn(1, 3, 64, 64)
    fast = deploy(net, x, repeats=1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net.eval()(x), rtol=1e-4, atol=1e-4)
    assert len(fast.deployment.folded) == 20


def test_the_structure_of_a_folded_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    assert followers(net, (torch.randn(2, 3, 6, 6),)) == ({"1": "0"}, {})
    again = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    fold_norms(net, {"1": "0"})
    fold_structure(again, {"1": "0"})
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in net.state_dict().items()
    }
    with pytest.raises(UsageError, match="norm '2' cannot be folded into '0'"):
        fold_structure(net, {"2": "0"})


class Failing(nn.Module):
    """Raises after its layers have run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(self.conv(x))
        raise RuntimeError("out of memory")


def test_no_hook_stays_where_the_network_fails() -> None:
    net, x = Failing().eval(), torch.randn(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        calls_of(net, (x,), lambda layer: True)
    with pytest.raises(RuntimeError, match="out of memory"):
        followers(net, (x,))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Random(nn.Module):
    """No two runs are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * torch.rand(())


def test_a_network_whose_outputs_are_random_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    fast = deploy(Random(), torch.randn(1, 3, 4, 4), repeats=1)
    assert fast.deployment.folded == {}
    assert "two runs of the given network differ by" in caplog.text


def test_what_a_network_keeps_stays_as_it_was() -> None:
    fast = deploy(Counting(), torch.randn(1, 3, 4, 4), repeats=1)
    assert fast.calls == 0
    assert not any(tensor.is_inference() for tensor in (*fast.state_dict().values(), *fast.deployment.state.values()))
    assert fast.deployment.folded == {"norm": "conv"}


def test_norms_that_are_called_by_name() -> None:
    net, x = with_statistics(ByName()), torch.randn(1, 3, 4, 4)
    fast = deploy(net, x, repeats=1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))


def test_what_cannot_be_deployed_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(1, 3, 8, 8)
    with pytest.raises(UsageError, match="model does not run on example_inputs: RuntimeError"):
        deploy(net, x[:, :2])
    with pytest.warns(match="deprecated"):
        script = torch.jit.script(net)
    with pytest.raises(UsageError, match="model is a RecursiveScriptModule"):
        deploy(script, x)
    fast = deploy(Shared(lambda a, b: None), x, repeats=1)
    assert fast.deployment.folded == {}
    assert "its outputs hold no tensor to compare" in caplog.text


@pytest.mark.slow
def test_detectors_with_heads_of_their_own() -> None:
    class Heads(nn.Module):
        """It hands everything on."""

        def __init__(self, heads: nn.Module) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, *arguments: Any) -> Any:
            return self.heads(*arguments)

    torch.manual_seed(0)
    net = get_model("fasterrcnn_cpresnet50_fpn", weights=None, num_classes=3, **{**TINY, "box_score_thresh": 0.0})
    net.roi_heads = Heads(net.roi_heads)
    images = [torch.rand(3, 64, 64)]
    fast = deploy(with_statistics(net), images, repeats=1)
    with torch.no_grad():
        ours, theirs = fast(images)[0], net(images)[0]
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-3) for key in theirs)
