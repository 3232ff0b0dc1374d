"""Compression of whole detectors: their channel plans hold for pyramid, RPN and heads as well as for the backbone."""

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from masked import masked, random_kept
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

import norton_det as nd
from norton_det.channels.narrow import narrow_network
from norton_det.decompositions import Decomposition
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.rcnn_outputs import outputs_before_choice
from norton_det.pruning.select import select_channels
from norton_det.runtime.outputs import TOLERANCE, relative_difference
from norton_det.spec import DecomposedLayer, Spec
from norton_det.structure.build import build_network
from norton_det.structure.describe import describe
from norton_det.structure.settings import decomposable_layers

DETECTORS = [name for name in ARCHITECTURES if ARCHITECTURES[name].task.name == "detection"]
QUICK = "maskrcnn_cpresnet50_fpn_v2"
HEADS = {"segm": "mask", "keypoints": "keypoint"}


def scoped(arch: str) -> Architecture:
    return ARCHITECTURES[arch].scoped("detector")


def detector(arch: str, rank: int | None = None) -> nn.Module:
    """Return a detector of full width with statistics and biases that a mistake in the plan cannot hide behind.

    With a rank, its k x k convolutions are decomposed.
    """
    spec = Spec(arch, 4, options=TINY)
    if rank:
        layers = decomposable_layers(build_network(spec, scoped(arch), "meta"))[0]
        spec = replace(spec, decompositions=dict.fromkeys(layers, DecomposedLayer("cp", rank)))
    net: Any = with_statistics(nd.build(spec))
    for kind in HEADS.values():
        if pool := getattr(net.roi_heads, f"{kind}_roi_pool", None):
            pool.output_size = (4, 4)  # the same layers on smaller maps
    for block in [module for module in net.modules() if isinstance(module, Decomposition)]:
        weight = block.to_dense().weight
        factor = max(block.parameters(), key=Tensor.numel)
        factor.data *= (2 / weight[0].numel()) ** 0.5 / weight.std()  # so that signals do not vanish
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net


@torch.no_grad()
def run(net: nn.Module) -> dict[str, Any]:
    return outputs_before_choice(net, [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))])


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def test_there_are_five() -> None:
    kinds = [f"{kind}rcnn_cpresnet50_fpn" for kind in ("faster", "mask", "keypoint")]
    assert sorted(DETECTORS) == sorted([*kinds, "fasterrcnn_cpresnet50_fpn_v2", "maskrcnn_cpresnet50_fpn_v2"])


@pytest.mark.parametrize("draws", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("arch", "rank"), [*product(DETECTORS, (None,)), (QUICK, 2)])
def test_pruned_equals_masked(arch: str, rank: int | None, draws: int) -> None:
    """Every group at a random width: the outputs of each part are those of the dense detector with channels zeroed."""
    generator, plan, net = torch.Generator().manual_seed(draws), ARCHITECTURES[arch].plan, detector(arch, rank)
    whole = run(net)
    assert {HEADS[kind] for kind in ARCHITECTURES[arch].task.kinds if kind in HEADS} <= whole.keys()
    for _ in range(draws):
        kept = random_kept(plan, generator)
        with masked(net, plan, kept):
            expected = run(net)
        narrow = copy.deepcopy(net, {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values()})
        narrow_network(narrow, plan, kept)
        got = run(narrow)
        assert narrow.backbone.out_channels == len(kept["fpn"]) == got["backbone"][0].shape[1]
        dense_maps = [maps[:, kept["fpn"]] for maps in expected["backbone"]]
        for part, outputs in {**expected, "backbone": dense_maps}.items():
            assert relative_difference(got[part], outputs) < TOLERANCE, part
        for part in {"rpn", "box", "mask", "keypoint"} & expected.keys():
            assert relative_difference(expected[part], whole[part]) > 10 * TOLERANCE, f"{part}: pruning has an effect"
    spec = describe(narrow, arch)
    assert spec.widths == {group: len(kept[group]) for group in spec.widths}
    assert len(spec.decompositions) == (16 + 4 + 2 + 4 + 4 if rank else 0), "body, FPN, RPN, box and mask head"
    assert shapes(nd.build(spec, "meta")) == shapes(narrow)


@pytest.mark.slow
@pytest.mark.parametrize("arch", DETECTORS)
def test_every_channel_group_reaches_the_outputs(arch: str) -> None:
    """No group could be left out of the test above: to drop its channels changes what the detector computes."""
    plan, net = ARCHITECTURES[arch].plan, detector(arch)
    whole = run(net)
    everything = {group: torch.arange(width) for group, width in plan.widths.items()}
    for group in [group for group in plan.widths if "." in group or group == "fpn"]:
        if group.startswith("layer"):
            continue
        with masked(net, plan, everything | {group: torch.arange(3)}):
            changed = run(net)
        assert max(relative_difference(changed[part], whole[part]) for part in whole) > TOLERANCE, group


@pytest.mark.parametrize("arch", [QUICK, *(pytest.param(a, marks=pytest.mark.slow) for a in DETECTORS if a != QUICK)])
def test_rates_of_the_whole_detector_narrow_every_group_and_a_file_keeps_them(arch: str, tmp_path: Path) -> None:
    widths = ARCHITECTURES[arch].plan.widths
    rates = [0.75] * len(scoped(arch).rate_order)
    small, spec = nd.prune(detector(arch), arch, rates, criterion="norm", scope="detector")
    without_rate = {"layer4"}  # as published
    assert spec.widths == {group: width // 4 for group, width in widths.items() if group not in without_rate}
    assert shapes(nd.build(spec, "meta")) == shapes(small)
    nd.save(small, spec, tmp_path / "small.safetensors")
    loaded, again = nd.load(tmp_path / "small.safetensors")
    assert again == spec
    assert relative_difference(run(loaded), run(small)) == 0.0
    assert describe(loaded, arch).widths == spec.widths, "widths are read off the detector alone"


def test_a_detector_of_a_users_own_widths_is_described_by_them(tmp_path: Path) -> None:
    """Torchvision's parts, narrower than in its own detectors: the plan's groups at other widths."""
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    pyramid = BackboneWithFPN(resnet50(), stages, [256, 512, 1024, 2048], out_channels=96)
    options = {name: value for name, value in TINY.items() if name != "anchor_sizes"}
    heads = {
        "box_head": TwoMLPHead(96 * 7 * 7, 200),
        "box_predictor": FastRCNNPredictor(200, 4),
        "mask_head": MaskRCNNHeads(96, [64, 48, 32, 16], 1),
        "mask_predictor": MaskRCNNPredictor(16, 24, 4),
    }
    net = with_statistics(MaskRCNN(pyramid, **heads, **options))
    arch = "maskrcnn_cpresnet50_fpn"
    spec = describe(net, arch)
    masks = {f"roi_heads.mask_head.{i}.0": width for i, width in enumerate((64, 48, 32, 16))}
    boxes = dict.fromkeys(("roi_heads.box_head.fc6", "roi_heads.box_head.fc7"), 200)
    pyramids = dict.fromkeys(("fpn.inner", "fpn", "rpn.head.conv.0.0"), 96)
    assert spec.widths == {**pyramids, **boxes, **masks, "roi_heads.mask_predictor.conv5_mask": 24}
    nd.save(net, spec, tmp_path / "own.safetensors")
    loaded, _ = nd.load(tmp_path / "own.safetensors")
    assert relative_difference(run(loaded), run(net)) == 0.0


def test_filters_of_a_transposed_convolution_are_its_outputs() -> None:
    """The mask head's upsampling keeps the outputs with the largest weights, not those that read the largest."""
    layer = nn.ConvTranspose2d(8, 8, 2, stride=2)
    with torch.no_grad():
        layer.weight[:, [2, 7]] += 10
        layer.weight[[0, 1]] += 1
    assert select_channels([layer], 2, "norm", torch.Generator())[0].tolist() == [2, 7]
