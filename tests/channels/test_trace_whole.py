"""What cannot be followed stays whole, with the reason; what cannot be checked is refused."""

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Refused
from torch import Tensor, nn
from written_plans import Net, written

import norton_det as nd
from norton_det.models import ARCHITECTURES

MAP = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(channels: int, filters: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, 3, padding=1, **options)


def between(run: Callable[[Tensor], Tensor], reads: int = 8) -> Net:
    return Net(lambda n, x: n.b(run(n.a(x))), a=conv(3, 8), b=conv(reads, 4))


def two(run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Net:
    return Net(run, **{"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 4), **layers})


def shuffled(y: Tensor) -> Tensor:
    return y.view(2, 2, 4, 8, 8).transpose(1, 2).flatten(1, 2)


def halves(y: Tensor) -> Tensor:
    first, second = y.chunk(2, 1)
    return torch.cat([2 * first, second], 1)


def with_two_first(y: Tensor) -> Tensor:
    y[:, :2] = 0
    return y


class Scaled(nn.Module):
    """A module with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Standardised(nn.Conv2d):
    """A convolution with another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


def tied() -> Net:
    net = Net(
        lambda n, x: n.c(F.relu(n.b(F.relu(n.a(n.first(x)))))),
        first=conv(3, 8),
        a=conv(8, 8),
        b=conv(8, 8),
        c=conv(8, 4),
    )
    net.b.weight = net.a.weight
    return net


def grouped(n: Any, x: Tensor) -> Tensor:
    return n.c(F.relu(n.b(F.relu(n.a(x)))))


OF_NO_LAYER = "they are an argument of convolution, whose weight is of no layer"
IN_PART = "they are written into a part of a tensor"
OUTPUT = "they are an output of the network"
BY_POSITION = "they meet others along different dimensions in mul"
# Network, and why its layer "a" stays whole.
WHOLE = {
    "output": (Net(lambda n, x: n.a(x), a=conv(3, 8)), OUTPUT),
    "output among others": (Net(lambda n, x: [{"x": (F.relu(n.a(x)),)}], a=conv(3, 8)), OUTPUT),
    "unknown operator": (between(lambda y: y.sort(2).values), "they are an argument of sort"),
    "value": (between(lambda y: y * float(y.sum((0, 2, 3))[0])), "select takes them by position"),
    "top": (between(lambda y: y.topk(4, 1).values, 4), "they are an argument of topk"),
    "reduction": (between(lambda y: y.mean(1, keepdim=True), 1), "mean reduces over them"),
    "total": (between(lambda y: y / y.sum()), "sum reduces over them"),
    "softmax": (between(lambda y: y.softmax(1)), "_softmax is along them"),
    "shuffle": (between(shuffled), "view takes them by position"),
    "halves": (between(halves), "split takes them by position"),
    "first": (between(lambda y: y[:, :3], 3), "slice takes them by position"),
    "chosen": (between(lambda y: y[:, [2, 1]], 2), "index takes them by position"),
    "written in part": (between(with_two_first), "slice takes them by position"),
    "written into a larger map": (
        between(lambda y: torch.zeros(2, 8, 12, 12)[:, :, 2:10, 2:10].copy_(y)),
        IN_PART,
    ),
    "rows of channels": (
        between(lambda y: y.index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(1.0))),
        IN_PART,
    ),
    "empty": (
        between(lambda y: torch.cat([y, y[:0].flatten(1).view(0, 8, 8, 8)])),
        "what slice takes of them is empty on the example",
    ),
    "index": (between(lambda y: y[y > -9].view_as(y)), "they are an index in index"),
    "constant": (between(lambda y: y + torch.arange(8.0).view(8, 1, 1)), "they meet what no layer writes in add"),
    "image": (
        Net(lambda n, x: n.b(torch.cat([n.a(x), x], 1)), a=conv(3, 8), b=conv(11, 4)),
        "b reads them together with channels that stay",
    ),
    "image in another batch": (
        Net(lambda n, x: n.b(torch.cat([n.a(x), x])), a=conv(3, 3), b=conv(3, 4)),
        "they meet what no layer writes in cat",
    ),
    "image read as well": (
        Net(lambda n, x: n.b(n.a(x)) + n.b(x), a=conv(3, 3), b=conv(3, 4)),
        "b reads also what no layer writes",
    ),
    "across": (between(lambda y: y.amax(2)[:, :, None] * y.amax(2)[:, None], 8), BY_POSITION),
    "one channel": (Net(lambda n, x: n.b(n.a(x)), a=conv(3, 1), b=conv(1, 4)), "it has a single output channel"),
    "among each other": (
        between(lambda y: y + y.flip(1)),
        "channels of a meet each other",
    ),
    "another order": (
        two(lambda n, x: n.c(n.a(x) + n.b(n.first(x)).flip(1)), first=conv(3, 8)),
        "channels of b meet others in part or in another order",
    ),
    "read in another order": (
        Net(lambda n, x: n.c(n.a(x).flip(1)), a=conv(3, 8), c=conv(8, 4)),
        "c reads them in part or in another order",
    ),
    "layer norm": (
        Net(lambda n, x: n.b(n.norm(n.a(x))), a=conv(3, 8), norm=nn.LayerNorm([8, 8, 8]), b=conv(8, 4)),
        "native_layer_norm normalises several of them together",
    ),
    "group norm": (
        Net(lambda n, x: n.b(n.norm(n.a(x))), a=conv(3, 8), norm=nn.GroupNorm(4, 8), b=conv(8, 4)),
        "native_group_norm normalises several of them together",
    ),
    "group norm as a function": (
        between(lambda y: F.group_norm(y, 2)),
        "native_group_norm normalises several of them together",
    ),
    "norm of a computed scale": (
        between(lambda y: F.batch_norm(y, torch.rand(8), torch.rand(8) + 1)),
        "they meet what no layer writes in native_batch_norm",
    ),
    "parameter of another module": (
        Net(lambda n, x: n.b(n.own(n.a(x))), a=conv(3, 8), own=Scaled(), b=conv(8, 4)),
        "they meet own.scale in mul",
    ),
    "grouped convolution reads": (two(grouped, b=conv(8, 8, groups=2)), "b is a convolution with groups=2"),
    "depthwise with several filters": (
        two(grouped, b=conv(8, 16, groups=8), c=conv(16, 4)),
        "b is a convolution with groups=8",
    ),
    "computed weight": (two(lambda n, x: n.c(F.conv2d(n.a(x), n.b.weight * 2))), OF_NO_LAYER),
    "subclass with another weight": (two(grouped, b=Standardised(8, 8, 3)), OF_NO_LAYER),
    "computed bias": (
        two(lambda n, x: n.c(F.conv2d(n.a(x), n.b.weight, torch.rand(8))), b=conv(8, 8, bias=False)),
        "the bias of b is computed",
    ),
    "shared weights": (tied(), "it shares its weight with b"),
    "another dimension": (
        Net(lambda n, x: n.b(n.a(x)), a=conv(3, 8), b=nn.Linear(8, 4)),
        "b reads them along another dimension",
    ),
    "recurrent": (
        Net(lambda n, x: n.b(n.a(x.flatten(2)))[0], a=nn.Conv1d(3, 8, 1), b=nn.GRU(64, 4)),
        "they are an argument of addmm, whose weight is of no layer",
    ),
    "a size in the code": (
        Net(lambda n, x: n.b(n.a(x).reshape(-1, 8 * 64)), a=conv(3, 8), b=nn.Linear(512, 4)),
        r"narrowed, the network fails: .*",
    ),
    "a number that depends on the width": (
        between(lambda y: y / y.shape[1]),
        "narrowed, the network computes something else",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_followed_stays_whole(case: str) -> None:
    net, reason = WHOLE[case]
    torch.manual_seed(0)
    derived = nd.derive_plan(net, MAP)
    assert re.fullmatch(reason, derived.whole["a"]), derived.whole["a"]
    assert "a" not in derived.plan.widths


def test_the_other_layers_are_in_the_plan() -> None:
    """One layer that stays whole does not keep the others from being narrowed."""
    layers = {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 8), "d": conv(8, 4)}
    net = Net(lambda n, x: n.d(F.relu(n.c(shuffled(n.b(F.relu(n.a(x))))))), **layers)
    derived = nd.derive_plan(net, MAP)
    assert written(derived.plan) == {"a:  -> a", "b: a", "c:  -> c", "d: c"}
    assert derived.whole.keys() == {"b", "d"}


def test_a_failing_group_leaves_the_others() -> None:
    layers = {"a": conv(3, 8), "b": conv(8, 8), "c": nn.Linear(512, 4)}
    net = Net(lambda n, x: n.c(F.relu(n.b(n.a(x))).reshape(-1, 512)), **layers)
    derived = nd.derive_plan(net, MAP)
    assert written(derived.plan) == {"a:  -> a", "b: a"}
    assert derived.whole["b"].startswith("narrowed, the network fails: ")


def test_layers_that_did_not_run_are_refused(refused: Refused) -> None:
    net = Net(lambda n, x: n.a(x), a=conv(3, 8), unused=conv(3, 8), norm=nn.BatchNorm2d(8))
    expected = "Net did not run on the example: unused, norm; expected an example on which all run"
    refused(lambda: nd.derive_plan(net, MAP), 2, expected)


@pytest.mark.slow
def test_a_detector_must_detect_something(refused: Refused) -> None:
    architecture = ARCHITECTURES["maskrcnn_cpresnet50_fpn"]
    net = architecture.build(num_classes=3, box_score_thresh=2.0, **TINY)
    expected = "MaskRCNN did not run on the example: roi_heads.mask_head.0.0", "must detect something"
    refused(lambda: nd.derive_plan(net, architecture.task.example(64)), 2, *expected)


def test_a_narrowed_network_must_run_all_its_layers(refused: Refused) -> None:
    """Otherwise nothing is known about them."""
    layers = {"a": conv(3, 8), "score": conv(8, 1), "b": conv(3, 8), "c": conv(8, 4)}
    for layer in (layers["a"], layers["score"]):
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)

    def run(n: Any, x: Tensor) -> Tensor:
        high = n.score(n.a(x))[:, 0].mean((1, 2)) > threshold
        return n.c(n.b(x)[high])

    threshold = 0.0
    net, image = Net(run, **layers), torch.ones(1, 3, 3, 3)
    assert nd.derive_plan(net, image).plan.widths == {"a": 8, "b": 8}
    threshold = 0.999 * net.score(net.a(image)).mean().item()
    refused(lambda: nd.derive_plan(net, image), 2, "did not run once the network was narrowed: c; expected")


class Result(NamedTuple):
    """An output that is looked into."""

    map: Tensor


OUTPUTS = {
    "no tensors": lambda y: {"width": 8},
    "values that are not finite": lambda y: [y / 0],
    "Namespace": lambda y: (y, Namespace(hidden=y)),
    "ndarray": lambda y: (y, y.numpy()),
}


@pytest.mark.parametrize("found", OUTPUTS)
def test_outputs_that_cannot_be_compared_are_refused(found: str, refused: Refused) -> None:
    net = Net(lambda n, x: OUTPUTS[found](n.a(x)), a=conv(3, 8))
    refused(lambda: nd.derive_plan(net, MAP), 2, f"Net returns {found}; expected finite tensors in lists")


def test_outputs_are_found_in_any_container() -> None:
    net = Net(lambda n, x: {"all": [Result(n.a(x)), 3, None, "name"]}, a=conv(3, 8))
    assert nd.derive_plan(net, MAP).whole == {"a": OUTPUT}


def test_the_example_stays_as_it_is() -> None:
    example = torch.ones(2, 3, 8, 8)
    net = Net(lambda n, x: n.b(n.a(x.mul_(2))), a=conv(3, 8), b=conv(8, 4))
    assert nd.derive_plan(net, example).plan.widths == {"a": 8}
    assert bool((example == 1).all())


def test_the_network_stays_as_it_is() -> None:
    calls: list[bool] = []
    layers = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "b": nd.CPConv2d(8, 4, (3, 3), 1), "drop": nn.Dropout()}
    net = Net(lambda n, x: n.drop(n.b(n.norm(n.a(x)))), **layers)
    net.norm.eval()
    net.a.register_forward_hook(lambda module, args, out: calls.append(module.training))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert nd.derive_plan(net, MAP).plan.widths == {"a": 8}  # in evaluation mode, without dropout
    assert calls[0] is False
    assert (net.training, net.norm.training) == (True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in net.parameters())
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.children()] == [1, 0, 0, 0]


def test_a_network_of_one_precision() -> None:
    """It makes tensors of its own type, and so does not run in float64."""
    net = Net(lambda n, x: n.b(n.a(x) + n.a(torch.ones(2, 3, 8, 8))), a=conv(3, 8), b=conv(8, 4))
    assert nd.derive_plan(net, MAP).plan.widths == {"a": 8}
