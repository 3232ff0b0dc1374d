"""Deployment: equal outputs, in every implementation, for every network."""

from collections import Counter

import pytest
import torch
from conftest import TINY
from statistics_of_norms import with_statistics
from torch import nn
from torchvision.models import get_model
from torchvision.ops import MultiScaleRoIAlign

import norton_det as nd
from norton_det.channels.narrow import NORMS
from norton_det.decompositions import CPConv2d
from norton_det.deployment.deploy import deploy
from norton_det.deployment.implementations.decomposed import CP
from norton_det.errors import UsageError
from norton_det.structure.settings import spec_from_configuration


@pytest.mark.parametrize("implementation", list(CP))
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("vgg16_bn_cifar", 32),
        ("resnet56_cifar", 32),
        ("resnet110_cifar", 32),
        ("densenet40_cifar", 32),
        ("resnet50", 64),
    ],
)
def test_networks_keep_their_function(
    arch: str, size: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = with_statistics(nd.build(spec_from_configuration(arch, 2, "[0.25]*57")))
    for name in CP:
        if name != implementation:  # so that the fastest of the implementations is this one
            monkeypatch.delitem(CP._items, name)
    images = torch.randn(2, 3, size, size)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fast = deploy(net, images, repeats=1)
    with torch.no_grad():
        expected, got = net(images), fast(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    decomposed = {name for name, module in net.named_modules() if isinstance(module, CPConv2d)}
    implementations = {block.name: block.implementation for block in fast.deployment.blocks}
    assert {implementations[name] for name in decomposed} == {implementation}
    assert all(isinstance(net.get_submodule(name), nn.Linear) for name in implementations.keys() - decomposed)
    assert not any(isinstance(module, CPConv2d) for module in fast.modules())
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    norms = sum(isinstance(module, NORMS) for module in net.modules())
    if arch == "densenet40_cifar":  # its norms come before the convolutions
        assert fast.deployment.folded == {}
    else:
        assert len(fast.deployment.folded) == norms


@pytest.mark.parametrize("arch", ["fasterrcnn", "maskrcnn", "keypointrcnn"])
def test_detectors(arch: str) -> None:
    net = get_model(f"{arch}_cpresnet50_fpn", weights=None, num_classes=3, **{**TINY, "box_score_thresh": 0.0})
    net, _ = nd.decompose(net, f"{arch}_cpresnet50_fpn", 1)
    with_statistics(net)
    images = [torch.rand(3, 64, 64)]
    fast = deploy(net, images, repeats=1)
    with torch.no_grad():
        expected, got = (list(model.backbone(torch.stack(images)).values()) for model in (net, fast))
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()
        assert fast(images)[0].keys() == net(images)[0].keys()
    assert len(fast.deployment.folded) == 53
    kinds = Counter(type(net.get_submodule(block.name)) for block in fast.deployment.blocks)
    pools = 1 if arch == "fasterrcnn" else 2
    assert kinds == {CPConv2d: 16, nn.Linear: 4, MultiScaleRoIAlign: pools}
    for block in fast.deployment.blocks:
        assert f"{block.milliseconds[block.implementation]:.2f}" in str(fast.deployment)


def test_dense_networks_are_deployed_the_same_way() -> None:
    net = with_statistics(nd.build(nd.Spec("resnet56_cifar", 10)))
    fast = deploy(net, (torch.randn(1, 3, 32, 32),), repeats=1)
    assert len(fast.deployment.folded) == 55
    assert [block.name for block in fast.deployment.blocks] == ["linear"]
    assert set(fast.deployment.milliseconds) == {"given", "contiguous", "channels_last"}
    with pytest.raises(UsageError, match="repeats is 0"):
        deploy(net, torch.randn(1, 3, 32, 32), repeats=0)
