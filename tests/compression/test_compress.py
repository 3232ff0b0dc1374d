"""Compression of whole networks: channel plans, specs, files."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masked import masked, random_kept
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.models import resnet50

import norton_det as nd
from norton_det.channels.narrow import narrow_network
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.state_dicts import read_state_dict
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build
from norton_det.structure.describe import describe

CLASSIFIERS = ["resnet50", "vgg16_bn_cifar", "resnet56_cifar", "resnet110_cifar", "densenet40_cifar"]
CIFAR = CLASSIFIERS[1:]
GENTLE = dict.fromkeys(CLASSIFIERS, "[0.1]*57")  # longer than needed


def run_of(arch: str) -> Callable[[nn.Module], list[Tensor]]:
    """Return a function that runs a network of an architecture on fixed input."""
    size = 32 if arch in CIFAR else 64
    image = torch.randn(2, 3, size, size)

    def run(net: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [net(image)]

    return run


@pytest.mark.parametrize("draws", [4, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_pruned_equals_masked(arch: str, rank: int | None, draws: int) -> None:
    """Every channel plan, with random widths of every group."""
    generator = torch.Generator().manual_seed(draws)
    full = Spec(arch, 7)
    net = build(full)
    if rank:
        convs = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        layer = DecomposedLayer("cp", rank)
        full = replace(full, decompositions=dict.fromkeys(convs, layer))
        net = build(full)
    with_statistics(net)
    run, plan = run_of(arch), ARCHITECTURES[arch].plan
    for _ in range(draws):
        kept = random_kept(plan, generator)
        with masked(net, plan, kept):
            outputs = run(net)
        pruned = copy.deepcopy(net)
        narrow_network(pruned, plan, kept)
        for expected, got in zip(outputs, run(pruned), strict=True):
            scale = expected.abs().max()
            torch.testing.assert_close(got / scale, expected / scale, rtol=1e-4, atol=1e-4)
        widths = {group: len(channels) for group, channels in kept.items()}
        spec = replace(full, widths=widths, kept={g: k.tolist() for g, k in kept.items()})
        rebuilt = build(spec).eval()
        rebuilt.load_state_dict(pruned.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(run(rebuilt), run(pruned), strict=True))


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_compress_save_load(arch: str, tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch=arch, rank=1, rates=GENTLE[arch], num_classes=5)
    net.eval()
    rebuilt = build(spec)
    assert {n: t.shape for n, t in rebuilt.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, again = nd.load(tmp_path / "net.safetensors")
    assert again == spec
    assert again.provenance["prune"]["rates"] == GENTLE[arch]
    assert {group: len(kept) for group, kept in again.kept.items()} == again.widths
    run = run_of(arch)
    assert all(torch.equal(a, b) for a, b in zip(run(net), run(loaded), strict=True))
    assert not loaded.training
    assert list(tmp_path.iterdir()) == [tmp_path / "net.safetensors"]


def test_source_is_not_changed() -> None:
    net = resnet50(num_classes=3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    compressed, _ = nd.compress(net, arch="resnet50", rank=1, rates=GENTLE["resnet50"])
    plain, spec = nd.compress(net, arch="resnet50")
    assert type(compressed) is type(net)
    assert plain is not net
    assert spec == Spec("resnet50", 3)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_published_resnets() -> None:
    _, spec = nd.compress(None, arch="resnet50", rank=1, rates="[0.]+[0.1]*2+[0.4]*5+[0.75]*12", criterion="random")
    cost = nd.count_complexity(spec)
    assert (cost.params, cost.macs) == (5_885_736, 899_619_808)
    assert spec.widths["layer1"] == 230
    _, spec = nd.compress(None, arch="resnet56_cifar", rank=1, rates="[0.]+[0.12]*2+[0.4]*27", criterion="random")
    cost = nd.count_complexity(replace(spec, decompositions=dict.fromkeys(spec.ranks, DecomposedLayer("cp", 7))))
    assert (cost.params, cost.macs) == (447_830, 72_032_768)


def test_all_writers_of_a_stage_keep_the_same_channels() -> None:
    net, spec = nd.compress(None, arch="resnet56_cifar", rank=1, rates="[0.]+[0.25]*2+[0.]*27")
    kept = list(spec.kept["layer1"])
    source, _ = nd.decompose(build_seeded("resnet56_cifar"), "resnet56_cifar", 1)
    for block in range(9):
        full = source.get_submodule(f"layer1.{block}.conv2").to_dense().weight
        assert torch.equal(net.get_submodule(f"layer1.{block}.conv2").to_dense().weight, full[kept])
    assert net.get_submodule("layer1.0.shortcut").index.tolist() == kept


def build_seeded(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[arch].build(10)


def test_decompose_lists_what_it_leaves() -> None:
    _, spec = nd.decompose(build(Spec("resnet50", 4)), "resnet50", 1)
    step = spec.provenance["decompose"]
    assert len(spec.ranks) == 16
    assert step["skipped"]["conv1"] == "the stem stays dense, as published"
    assert step["skipped"]["layer1.0.downsample.0"] == "1x1"
    assert step["skipped"]["fc"] == "linear"
    assert len(step["layers"]) + len(step["skipped"]) == 54
    assert all(0 < fit["nmse"] < 1 and fit["degeneracy"] > 0 for fit in step["layers"].values())


def test_ranks_by_layer_and_in_steps() -> None:
    net = build(Spec("resnet56_cifar", 10))
    first, spec = nd.decompose(net, "resnet56_cifar", {"conv1": 9, "layer3.8.conv2": 2})
    assert spec.ranks == {"conv1": 9, "layer3.8.conv2": 2}
    narrow, spec = nd.prune(first, spec, "[0.]*3+[0.5]*27")
    narrower, spec = nd.prune(narrow, spec, "[0.]*3+[0.5]*27", criterion="norm")
    assert spec.widths["layer2.3.conv1"] == 8
    # Channels are counted in the original network, whatever the number of steps.
    weight = narrower.get_submodule("layer2.3.conv1").weight
    assert torch.equal(weight, net.get_submodule("layer2.3.conv1").weight[list(spec.kept["layer2.3.conv1"])])


def test_exact_rank_keeps_the_function() -> None:
    net = build_seeded("resnet56_cifar").double().eval()
    exact, _ = nd.decompose(net, "resnet56_cifar", 9)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(exact(x), net(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"arch": "resnet51"},
            "unknown architecture 'resnet51'; expected one of: .*resnet50, .*resnet56_cifar, vgg16_bn_cifar",
        ),
        ({"criterion": "best", "rates": "[0.1]*30"}, "unknown criterion 'best'"),
        ({"criterion": "best"}, "unknown criterion 'best'; expected one of: csa, norm, pabs, random, vbd"),
        ({"decomposition": "pca"}, "unknown decomposition 'pca'"),
        ({"decomposition": "pca", "rank": 1}, "unknown decomposition 'pca'; expected one of: cp, svd"),
        ({"rank": 0}, "rank is 0; expected at least 1"),
        ({"rank": {"conv9": 1}}, "'conv9' is no such layer in resnet56_cifar"),
        ({"rank": {"linear": 1}}, "layer 'linear': a Linear layer has no CP block"),
        ({"rates": "[0.1]*29"}, "rates has 29 values; resnet56_cifar takes 30: stem, layer1, layer2, layer1.0.conv1"),
        ({"rates": "[0.]+[0.95]*29"}, "group 'layer1': rate 0.95 leaves none of its 16 filters"),
        ({"rates": [0.1] * 29 + [1.0]}, "rate 1.0 is outside"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        nd.compress(None, **{"arch": "resnet56_cifar", **arguments})


def test_wrong_models() -> None:
    with pytest.raises(UsageError, match="no linear layer 'linear'; expected a resnet56_cifar"):
        nd.compress(resnet50(), arch="resnet56_cifar", rank=1)
    broken = build_seeded("resnet56_cifar")
    with torch.no_grad():
        broken.layer1[2].conv1.weight[3] = float("nan")
    with pytest.raises(DataError, match=r"layer 'layer1.2.conv1': weights of filters \[3\] are not finite"):
        nd.compress(broken, arch="resnet56_cifar", rank=2)


def test_weights_files(tmp_path: Path) -> None:
    net = build_seeded("resnet56_cifar")
    state = net.state_dict()
    wrapped = {
        "plain.pth": state,
        "wrapped.pt": {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3},
        "model.th": {"model": {f"_orig_mod.{n}": t for n, t in state.items()}},
        "both.pth": {f"module._orig_mod.{n}": t for n, t in state.items()},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / name)
        loaded = read_state_dict(tmp_path / name)
        assert loaded.keys() == state.keys(), name
        got, spec = nd.compress(tmp_path / name, arch="resnet56_cifar")
        assert torch.equal(got.linear.weight, net.linear.weight)
        assert spec.provenance["source"] == name
        assert spec.num_classes == 10


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    net, spec = nd.compress(None, arch="resnet56_cifar")
    good = tmp_path / "good.safetensors"
    nd.save(net, spec, good)
    torch.save(net.state_dict(), tmp_path / "good.pth")
    for name in ("good.safetensors", "good.pth"):
        cut = tmp_path / f"cut{Path(name).suffix}"
        cut.write_bytes((tmp_path / name).read_bytes()[:-5000])
        with pytest.raises(DataError, match=str(cut)):
            nd.load(cut)
        (tmp_path / f"text{cut.suffix}").write_text("no weights")
        with pytest.raises(DataError, match=f"text{cut.suffix}"):
            nd.load(tmp_path / f"text{cut.suffix}")
    with pytest.raises(DataError, match=r"good\.pth: holds no spec"):
        nd.load(tmp_path / "good.pth")
    with pytest.raises(DataError, match="no such file"):
        nd.load(tmp_path / "missing.safetensors")
    torch.save({"weights": 3}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth: no state dict"):
        nd.compress(tmp_path / "other.pth", arch="resnet56_cifar")
    with pytest.raises(DataError, match=r"good\.pth: does not fit the network: lacks 132 tensors"):
        nd.compress(tmp_path / "good.pth", arch="resnet50")
    wrong = replace(spec, num_classes=11)
    with pytest.raises(UsageError, match=r"linear\.out_features is 10; the tensors of its layer are for 11"):
        nd.save(net, wrong, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()
    with pytest.raises(UsageError, match=r"folder .*nowhere does not exist"):
        nd.save(net, spec, tmp_path / "nowhere" / "net.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": {"layer9": 3}}, "unknown channel group of resnet50 'layer9'"),
        ({"widths": {"layer1": 257}}, "group 'layer1' keeps channel 256; resnet50 has 256"),
        ({"widths": {"layer1": 1}, "kept": {"layer1": [256]}}, "keeps channel 256"),
        ({"decompositions": {"fc": ("cp", 1)}}, "layer 'fc': a Linear layer has no CP block"),
    ],
)
def test_specs_that_cannot_be_built(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(Spec("resnet50", 10, **fields), "meta")


def test_describe_reads_a_network() -> None:
    net, spec = nd.compress(None, arch="resnet50", rank=2, rates=GENTLE["resnet50"], criterion="norm")
    seen = describe(net, "resnet50")
    assert (seen.ranks, dict(seen.widths)) == (spec.ranks, dict(spec.widths))
    narrowed, _ = nd.compress(None, arch="resnet56_cifar", rates=GENTLE["resnet56_cifar"])
    with pytest.raises(UsageError, match="expected its Spec"):
        describe(narrowed, "resnet56_cifar")
