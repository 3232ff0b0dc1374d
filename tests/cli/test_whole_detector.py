"""Commands on the whole of a detector."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Refused, tool

import norton_det as nd
from norton_det.config import COMPRESSION

FASTER = "fasterrcnn_cpresnet50_fpn"
RANKS = {"backbone.body.*": 1, "backbone.fpn.layer_blocks.*": [48, 64], "rpn.*": 32, "roi_heads.box_head.fc6": 16}
METHODS = {"backbone.body.*": "cp", "backbone.fpn.layer_blocks.*": "tucker2", "rpn.*": "tucker2"}
METHODS |= {"roi_heads.box_head.fc6": "svd"}
RATES = "[0.]+[0.5]*19+[0.]*5"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense detector of four classes with options of its own."""
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    torch.manual_seed(0)
    spec = nd.Spec(FASTER, 4, options={**TINY, "box_detections_per_img": 7})
    nd.save(nd.build(spec), spec, path)
    return path


def test_the_architecture_and_the_options_are_those_of_the_file(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fast.safetensors"
    words = ["--weights", str(dense), "--scope", "detector", "--rank", json.dumps(RANKS), "--rates", RATES]
    words += ["--decomposition", json.dumps(METHODS), "--proposals", "11", "--output", str(output)]
    assert tool("compress").main(words) == 0
    shown = capsys.readouterr().out
    net, spec = nd.load(output)
    _, before = nd.load(dense)
    assert (spec.arch, spec.num_classes) == (FASTER, 4)
    assert spec.options == {**before.options, "rpn_post_nms_top_n_test": 11}
    assert net.rpn._post_nms_top_n["testing"] == 11
    assert len(spec.decompositions) == 16 + 4 + 1 + 1
    assert spec.ranks["backbone.fpn.layer_blocks.3.0"] == (48, 64)
    assert spec.decompositions["roi_heads.box_head.fc6"] == ("svd", 16)
    # Costs are those at 800x800 with 1000 proposals, whatever the file was made for.
    counted = nd.count_complexity(nd.Spec(FASTER, 4, spec.decompositions, widths=spec.widths))
    assert f"{counted.macs:,}" in shown
    totals = next(line for line in shown.splitlines() if line.startswith("MACs (conv + linear, 800x800)"))
    assert 133e9 < float(totals.split()[5].replace(",", "")) < 134e9
    fast = nd.deploy(net, [torch.rand(3, 64, 64)])
    listed = str(fast.deployment)
    for name in ("backbone.fpn.layer_blocks.0.0", "rpn.head.conv.0.0", "roi_heads.box_head.fc6"):
        assert name in listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "none.pth"], "--weights none.pth is no file with a spec"),
        (["--weights", "DENSE", "--arch", "resnet50"], f"is a {FASTER}; --arch is resnet50"),
        (["--weights", "DENSE", "--target-macs", "5e9"], "a target takes the place of --rank and --rates"),
        (["--arch", "resnet50", "--proposals", "5"], "--proposals with resnet50: expected a detector"),
        (["--weights", "DENSE", "--proposals", "0"], "--proposals is 0; expected at least 1"),
        (["--weights", "DENSE", "--rank", '{"rpn.*": 0}'], "rank of rpn.* is 0; expected a whole number of at least 1"),
        (["--weights", "DENSE", "--rank", '{"rpn.*"'], "is not JSON"),
        (
            ["--weights", "DENSE", "--rank", '{"rpn.*": 2}'],
            "'rpn.*' matches no layer for 'cp'; expected some of: backb",
        ),
        (["--weights", "DENSE", "--decomposition", '{"rpn.*": "lu"}'], "'lu' is unknown; expected one of: cp, "),
        (["--weights", "DENSE", "--round-to", "0", "--rank", "1"], "--round-to is 0; expected at least 1"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, dense: Path, tmp_path: Path, refused: Refused) -> None:
    words = [str(dense) if word == "DENSE" else word for word in words]
    output = tmp_path / "x.safetensors"
    refused(lambda: tool("compress").main([*words, "--output", str(output)]), 2, message, unwritten=output)


def test_a_config_has_every_argument_of_compression() -> None:
    assert set(COMPRESSION) <= {*nd.compress.__kwdefaults__}
