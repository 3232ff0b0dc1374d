"""Detectors with low-rank layers, end to end: the box head's first layer, and all that one rank is meant for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, tool
from statistics_of_norms import with_statistics
from torch import nn

import norton_det as nd
from norton_det.cost.cost_model import CostModel
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn_outputs import outputs_before_choice
from norton_det.runtime.outputs import TOLERANCE, relative_difference

ARCH, HEAD = "fasterrcnn_cpresnet50_fpn", "roi_heads.box_head"
IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(net: nn.Module) -> Any:
    return outputs_before_choice(net.eval(), [IMAGE])


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(nd.build(nd.Spec(ARCH, 3, options={**TINY, "box_score_thresh": 0.0})))


@pytest.mark.slow
def test_the_box_head_is_compressed_saved_and_deployed(dense: nn.Module, tmp_path: Path) -> None:
    exact, _ = nd.decompose(dense, ARCH, {f"{HEAD}.fc7": 1024}, method="svd")
    assert relative_difference(run(exact), run(dense)) < TOLERANCE
    names = {f"{HEAD}.fc6": "svd", "rpn.head.bbox_pred": "svd", "backbone.fpn.layer_blocks.0.0": "tucker2"}
    ranks: dict[str, Any] = dict(zip(names, (32, 7, (16, 24)), strict=True))
    net: Any
    net, spec = nd.compress(
        dense, arch=ARCH, rank=ranks, decomposition=names, rates="[0.]*20+[0.5]*5", scope="detector"
    )
    assert spec.ranks == ranks
    assert net.roi_heads.box_head.fc6.reduce.weight.shape == (32, 128 * 49)
    assert net.roi_heads.box_head.fc6.expand.weight.shape == (512, 32)
    counted = nd.count_complexity(spec)
    (fc6,) = (layer for layer in counted.layers if layer.name == f"{HEAD}.fc6")
    assert (fc6.macs, fc6.params) == (1000 * 32 * (128 * 49 + 512), 32 * (128 * 49 + 512) + 512)
    costs = CostModel(ARCHITECTURES[ARCH]).at(spec.decompositions, spec.widths)
    other = nd.count_complexity(nd.Spec(ARCH, 91, spec.decompositions, spec.widths))
    assert (costs.macs, costs.macs_published, costs.params) == (other.macs, other.macs_published, other.params)
    nd.save(net, spec, tmp_path / "net.safetensors")
    loaded, read = nd.load(tmp_path / "net.safetensors")
    assert read == spec
    assert relative_difference(run(loaded), run(net)) == 0
    fast: Any = nd.deploy(net, [IMAGE], repeats=1)
    (choice,) = (block for block in fast.deployment.blocks if block.name == f"{HEAD}.fc6")
    assert set(choice.milliseconds) == {"factored", "factored_convolution", "dense", "dense_convolution"}
    assert f"{HEAD}.fc6 " in str(fast.deployment)
    assert relative_difference(run(fast), run(net)) < TOLERANCE
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    assert relative_difference(run(nd.load(tmp_path / "fast.safetensors")[0]), run(fast)) < TOLERANCE


@pytest.mark.slow
def test_one_rank_for_the_whole_detector(dense: nn.Module, tmp_path: Path) -> None:
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    words = ["--arch", ARCH, "--weights", str(tmp_path / "dense.pth"), "--output", str(tmp_path / "net.safetensors")]
    assert tool("compress").main([*words, "--decomposition", "svd", "--rank", "48", "--scope", "detector"]) == 0
    _, spec = nd.load(tmp_path / "net.safetensors")
    plan = ARCHITECTURES[ARCH].plan
    sizes = {name: module for name, module in dense.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    pointwise = {name for name, module in sizes.items() if getattr(module, "kernel_size", (1, 1)) == (1, 1)}
    assert set(spec.ranks) == {layer.name for layer in plan.layers if layer.writes and layer.name in pointwise}
    assert {f"{HEAD}.fc6", f"{HEAD}.fc7", "backbone.fpn.inner_blocks.3.0"} <= set(spec.ranks)
    assert set(spec.ranks.values()) == {48}
    skipped = spec.provenance["decompose"]["skipped"]
    assert skipped["roi_heads.box_predictor.cls_score"] == "writes no channel group"
