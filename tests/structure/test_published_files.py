"""Files of other programs: the publication's own implementation, other names, networks that others pruned."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import published_layouts as layouts
import pytest
import torch
from conftest import Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet50

import norton_det as nd
from norton_det.models import ARCHITECTURES
from norton_det.models.weights import initial_network

R56, R110 = partial(layouts.resnet_cifar, 9), partial(layouts.resnet_cifar, 18)
NETWORKS: dict[str, tuple[Callable[..., layouts.State], Callable[[layouts.Run, Tensor], Tensor], list[float]]] = {
    "resnet50": (layouts.resnet50, layouts.run_resnet50, [0.0] + [0.1] * 2 + [0.4] * 5 + [0.75] * 12),
    "resnet56_cifar": (R56, layouts.run_resnet_cifar(9), [0.0] + [0.18] * 29),
    "resnet110_cifar": (R110, layouts.run_resnet_cifar(18), [0.0] + [0.4] * 2 + [0.5] * 18 + [0.65] * 36),
    "vgg16_bn_cifar": (layouts.vgg, layouts.run_vgg, [0.3] * 7 + [0.75] * 5 + [0.0]),
    "densenet40_cifar": (
        layouts.densenet,
        layouts.run_densenet,
        [0.0] + [0.1] * 12 + [0.0] + [0.2] * 12 + [0.0] + [0.1] * 12,
    ),
}


def images_for(arch: str) -> Tensor:
    return torch.rand(2, 3, *[64 if arch == "resnet50" else 32] * 2)


@pytest.mark.parametrize(
    ("arch", "rank"),
    [("resnet50", 1), ("resnet56_cifar", 2), ("resnet110_cifar", 1), ("vgg16_bn_cifar", 3), ("densenet40_cifar", 2)],
)
def test_a_file_of_the_publication_computes_what_its_factors_define(arch: str, rank: int, tmp_path: Path) -> None:
    make, run, rates = NETWORKS[arch]
    state = make(rates, rank)
    path = tmp_path / "x.pt"
    torch.save(
        {
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
            "rank": rank,
            "compress_rate": "[0.1]*40",
        },
        path,
    )
    net, spec = nd.load(path)
    images = images_for(arch)
    with torch.no_grad():
        torch.testing.assert_close(net(images), run(layouts.Run(state, rank), images), rtol=1e-3, atol=1e-3)
    assert spec.arch == arch
    assert set(spec.ranks.values()) == {rank}
    assert spec.provenance["published"] == {"rank": rank, "rates": "[0.1]*40"}
    # It is a network like any other from then on.
    nd.save(net, spec, tmp_path / "ours.safetensors")
    again, loaded = nd.load(tmp_path / "ours.safetensors")
    assert loaded == spec
    with torch.no_grad():
        assert torch.equal(again(images), net(images))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [name for name in NETWORKS if name != "resnet50"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_rates(arch: str, data: st.DataObject, tmp_path: Path) -> None:
    make, run, rates = NETWORKS[arch]
    rate = st.floats(0, 0.8)
    drawn = [0.0 if arch.startswith("densenet") and i in (0, 13, 26) else data.draw(rate) for i in range(len(rates))]
    rank = data.draw(st.integers(1, 3))
    state = make(drawn, rank)
    torch.save({"state_dict": state, "rank": rank}, tmp_path / "x.pt")
    images = images_for(arch)
    with torch.no_grad():
        outputs, expected = nd.load(tmp_path / "x.pt")[0](images), run(layouts.Run(state, rank), images)
    # Random weights can give logits of any size, and one of them can be nearly zero: the largest is the scale.
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_the_rank_in_the_name_and_by_the_norms(tmp_path: Path) -> None:
    make, run, rates = NETWORKS["resnet50"]
    state = make(rates, 2)
    images = images_for("resnet50")
    expected = run(layouts.Run(state, 2), images)
    for name in ("resnet_50_pabs_[0.]+[0.1]*2+[0.4]*5+[0.75]*12_2_73.65.pt", "weights.pth"):
        torch.save(state, tmp_path / name)
        net = nd.cpresnet50(weights=tmp_path / name).eval()
        torch.testing.assert_close(net(images), expected, rtol=1e-3, atol=1e-3)
    spec = nd.load(tmp_path / "resnet_50_pabs_[0.]+[0.1]*2+[0.4]*5+[0.75]*12_2_73.65.pt")[1]
    record = {"criterion": "pabs", "rates": "[0.]+[0.1]*2+[0.4]*5+[0.75]*12", "rank": "2", "top1": "73.65"}
    assert spec.provenance["published"] == record
    body = nd.backbone(tmp_path / "weights.pth").eval()
    assert body.channels == (230, 460, 614, 2048)
    detector = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=tmp_path / "weights.pth")
    assert detector.backbone.body.layer1[0].conv2.rank == 2


@pytest.mark.parametrize("arch", ["resnet50", "resnet56_cifar", "vgg16_bn_cifar", "densenet40_cifar"])
def test_dense_networks_with_the_names_of_the_publication(arch: str, tmp_path: Path) -> None:
    make, run, _ = NETWORKS[arch]
    state = make([0.0] * 60, 0)
    torch.save({"state_dict": state}, tmp_path / "dense.pt")
    net, _ = initial_network(ARCHITECTURES[arch], tmp_path / "dense.pt")
    images = images_for(arch)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), run(layouts.Run(state, 0), images), rtol=1e-3, atol=1e-3)


def test_names_of_timm() -> None:
    timm = pytest.importorskip("timm")
    assert timm.create_model("resnet50").state_dict().keys() == resnet50().state_dict().keys()


def pruned(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, inputs: Tensor | None, outputs: Tensor | None) -> None:
    """Narrow two layers in place, as Torch-Pruning does."""
    weight = conv.weight.detach()
    weight = weight if outputs is None else weight[outputs]
    conv.weight = nn.Parameter(weight if inputs is None else weight[:, inputs])
    conv.out_channels, conv.in_channels = conv.weight.shape[:2]
    if outputs is not None and norm is not None:
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[outputs]))
        norm.running_mean, norm.running_var = norm.running_mean[outputs], norm.running_var[outputs]
        norm.num_features = len(outputs)


def test_a_network_that_another_program_pruned(tmp_path: Path) -> None:
    """A ResNet-50 as Torch-Pruning leaves it: torchvision's class, with other widths in its layers."""
    net: Any = resnet50(num_classes=5).eval()
    for stage, full in ((net.layer2, 128), (net.layer3, 256)):
        for block in stage:
            kept = torch.randperm(full)[: full // 3].sort().values
            pruned(block.conv1, block.bn1, None, kept)
            pruned(block.conv2, block.bn2, kept, kept)
            pruned(block.conv3, None, kept, None)
    images = torch.rand(2, 3, 64, 64)
    smaller, spec = nd.compress(net, arch="resnet50")
    assert {group: width for group, width in spec.widths.items() if group.startswith("layer2.1")} == {
        "layer2.1.conv1": 42,
        "layer2.1.conv2": 42,
    }
    assert torch.equal(smaller(images), net(images))
    torch.save(net.state_dict(), tmp_path / "pruned.pth")
    body = nd.backbone(tmp_path / "pruned.pth", out_indices=(4,)).eval()
    assert torch.equal(body(images)["0"].mean((2, 3)) @ net.fc.weight.T + net.fc.bias, net(images))
    decomposed, spec = nd.compress(net, arch="resnet50", rank={"layer2.1.conv2": 9})
    torch.testing.assert_close(decomposed(images), net(images), rtol=1e-3, atol=1e-3)


def test_wrong_files(tmp_path: Path, refused: Refused) -> None:
    make, _, rates = NETWORKS["densenet40_cifar"]
    state = make(rates, 2)
    path = tmp_path / "x.pt"
    torch.save({"state_dict": state, "rank": 0}, path)
    refused(lambda: nd.load(path), 3, "x.pt: rank is 0; expected a positive integer")
    refused(lambda: nd.densenet40_cifar(weights=path), 3, "x.pt: rank is 0")
    torch.save({"state_dict": state, "rank": 5}, path)
    refused(
        lambda: nd.load(path), 3, "stem.feature.pointwise.weight has 48 channels; expected a multiple of the rank 5"
    )
    torch.save({"state_dict": {"conv.feature.pointwise.weight": torch.ones(2, 2, 1, 1)}}, path)
    refused(lambda: nd.load(path), 3, "is none of the networks resnet50, densenet40_cifar")
    torch.save({"state_dict": {name: state[name] for name in state if not name.startswith("conv1.")}}, path)
    refused(lambda: nd.load(path), 3, "x.pt: tells no rank; expected it beside the tensors, or in the name")
    torch.save({"state_dict": {name: state[name] for name in state if not name.startswith("fc.")}, "rank": 2}, path)
    refused(lambda: nd.load(path), 3, "x.pt: lacks linear.weight; expected all layers of a densenet40_cifar")
