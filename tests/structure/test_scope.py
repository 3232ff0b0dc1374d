"""The scope of compression: a detector's backbone, or all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import norton_det as nd
from norton_det.config import Config, read_config, write_config
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.search.uniform import search
from norton_det.structure.settings import decomposable_layers, dense_network, spec_from_configuration

DETECTORS = [
    name
    for name in ARCHITECTURES
    if "detector" in ARCHITECTURES[name].scopes and ARCHITECTURES[name].task.name == "detection"
]
FASTER = "fasterrcnn_cpresnet50_fpn"
RATES = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


@pytest.fixture(scope="module")
def faster() -> nn.Module:
    torch.manual_seed(0)
    return nd.build(nd.Spec(FASTER, 3, options={"min_size": [64], "max_size": 64}))


@pytest.mark.parametrize("arch", DETECTORS)
def test_scopes_are_parts_of_each_other(arch: str) -> None:
    backbone, detector = (dense_network(arch, scope=scope) for scope in ("backbone", "detector"))
    assert dense_network(arch).architecture == backbone.architecture
    inner, outer = (decomposable_layers(network)[0] for network in (backbone, detector))
    assert [name for name in outer if name.startswith("backbone.body.")] == inner
    kernels = {name: detector.module.get_submodule(name).kernel_size for name in outer}
    assert all(max(kernel) > 1 for kernel in kernels.values())
    assert {f"backbone.fpn.layer_blocks.{i}.0" for i in range(4)} | {"rpn.head.conv.0.0"} <= set(outer)
    # Every group that has a writer among what is compressed has a rate, but for the last stage and the predictions.
    order = detector.architecture.rate_order
    assert order[: len(backbone.architecture.rate_order)] == backbone.architecture.rate_order
    rated = {group for entry in order for group in entry.groups}
    assert set(detector.plan.widths) - rated <= set(backbone.plan.widths)


@pytest.mark.parametrize("arch", DETECTORS)
def test_the_default_scope_is_the_published_one(arch: str) -> None:
    default = spec_from_configuration(arch, 1, RATES)
    assert default == spec_from_configuration(arch, 1, RATES, scope="backbone")
    assert all(name.startswith("backbone.body.") for name in default.decompositions)
    whole = spec_from_configuration(arch, 1, f"{RATES}+[0.5]*30", scope="detector")
    assert set(default.decompositions) < set(whole.decompositions)
    assert set(default.widths) < set(whole.widths)
    assert (whole.widths["fpn"], whole.widths["rpn.head.conv.0.0"]) == (128, 128)


def test_every_step_takes_the_scope_and_records_it(faster: nn.Module) -> None:
    rates = f"{RATES}+[0.5]*5"
    net, spec = nd.compress(faster, arch=FASTER, rank=1, rates=rates, scope="detector")
    expected = spec_from_configuration(FASTER, 1, rates, num_classes=3, scope="detector")
    assert (spec.decompositions, spec.widths) == (expected.decompositions, expected.widths)
    assert {spec.provenance[step]["scope"] for step in ("decompose", "prune")} == {"detector"}
    decomposed, between = nd.decompose(faster, FASTER, 1, scope="detector")
    pruned, after = nd.prune(decomposed, between, rates, scope="detector")
    assert after == spec
    state = pruned.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        assert set(net.eval()(images)[0]) == {"boxes", "labels", "scores"}
    _, spec = nd.decompose(faster, FASTER, 1)
    assert spec.provenance["decompose"]["scope"] == "backbone"
    assert "scope" not in nd.compress(None, arch="resnet56_cifar", rank=1)[1].provenance["decompose"]


def test_one_rank_after_another_scope_decomposes_the_rest(faster: nn.Module) -> None:
    net, spec = nd.decompose(faster, FASTER, 1)
    _, spec = nd.decompose(net, spec, 16, method="tucker2", scope="detector")
    methods = {name: layer.method for name, layer in spec.decompositions.items()}
    assert methods["backbone.body.layer1.0.conv2"] == "cp"
    assert methods["backbone.fpn.layer_blocks.0.0"] == methods["rpn.head.conv.0.0"] == "tucker2"


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet56_cifar", "scope is 'detector'; resnet56_cifar has none: all of it is compressed"),
        (FASTER, f"unknown scope 'head' of {FASTER}; expected one of: backbone, detector"),
    ],
)
def test_wrong_scopes(arch: str, message: str) -> None:
    scope = "detector" if arch == "resnet56_cifar" else "head"
    calls: tuple[Any, ...] = (
        lambda: nd.compress(None, arch=arch, rank=1, scope=scope),
        lambda: nd.decompose(nn.Identity(), arch, 1, scope=scope),
        lambda: nd.prune(nn.Identity(), arch, "[0.5]*40", scope=scope),
        lambda: spec_from_configuration(arch, 1, scope=scope),
        lambda: search(arch, target_macs=1e9, scope=scope),
    )
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == message


def test_too_few_rates_for_the_whole_detector() -> None:
    with pytest.raises(UsageError, match=rf"rates has 20 values; {FASTER} takes 25: stem, .*fpn\.inner"):
        spec_from_configuration(FASTER, None, "[0.]*20", scope="detector")


def test_a_config_has_a_scope(tmp_path: Path) -> None:
    config = Config(FASTER, "coco", 1, f"{RATES}+[0.5]*5", scope="detector")
    write_config(config, tmp_path / "one.yaml")
    assert read_config(tmp_path / "one.yaml") == config
    assert config.spec() == spec_from_configuration(FASTER, 1, config.rates, scope="detector")
    methods = {"backbone.body.*": "cp", "rpn.head.conv.0.0": "tucker2", "roi_heads.box_head.fc6": "svd"}
    config = Config(FASTER, "coco", dict(zip(methods, (1, (32, 48), 64), strict=True)), decomposition=methods)
    write_config(config, tmp_path / "mixed.yaml")
    assert read_config(tmp_path / "mixed.yaml") == config
    (tmp_path / "two.yaml").write_text(f"arch: {FASTER}\ndataset: coco\nrank: 1\nscope: heads\n")
    with pytest.raises(DataError, match=r"two\.yaml: unknown scope 'heads'.*expected one of: backbone, detector"):
        read_config(tmp_path / "two.yaml")


@pytest.mark.slow
def test_search_looks_in_the_scope() -> None:
    found = search(FASTER, target_macs=50e9, scope="detector", rank=1, limit=1)[0]
    counted = nd.count_complexity(spec_from_configuration(FASTER, found.rank, found.rates, scope="detector"))
    assert (found.macs, found.params) == (counted.macs, counted.params)
    with pytest.raises(UsageError, match="nearest reachable"):
        search(FASTER, target_macs=50e9, rank=1)
