"""norton-det benchmark: what is timed and reported; not how fast it is."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refused, fill
from torch import nn

import norton_det as nd
from norton_det.cli.main import main
from norton_det.runtime.part_times import timed_parts


def benchmark(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> dict[str, Any]:
    assert main(["benchmark", str(file), "--device", "cpu", "--repeats", "2", "--json", *words]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_classifier(small_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = benchmark(capsys, small_net, "--batch-size", "3")
    _, spec = nd.load(small_net)
    rows = {row["network"]: row for row in report["rows"]}
    assert list(rows) == ["dense", "file", "dense, deployed", "file, deployed"]
    assert rows["dense"]["speedup"] == 1
    for name, one in (("dense", nd.Spec(spec.arch, spec.num_classes)), ("file", spec)):
        cost = nd.count_complexity(one)
        assert (rows[name]["macs"], rows[name]["params"]) == (cost.macs, cost.params)
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(3e3 / row["milliseconds"])
    assert (report["image_size"], report["batch_size"], report["repeats"]) == (32, 3, 2)
    assert "threads" in report["machine"]
    assert report["proposals"] is None


def test_the_size_of_the_images_is_counted(small_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = benchmark(capsys, small_net, "--image-size", "48")
    _, spec = nd.load(small_net)
    assert report["rows"][1]["macs"] == nd.count_complexity(spec, 48).macs


def test_a_file_that_is_deployed_is_timed_as_it_is(
    small_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, spec = nd.load(small_net)
    nd.save(nd.deploy(net, torch.rand(1, 3, 32, 32)), spec, tmp_path / "fast.safetensors")
    report = benchmark(capsys, tmp_path / "fast.safetensors")
    assert [row["network"] for row in report["rows"]] == ["dense", "file", "dense, deployed"]
    assert report["file_is_deployed"]


DECOMPOSED = {"backbone.body.layer1.0.conv2": nd.DecomposedLayer("cp", 1)}


@pytest.mark.slow
def test_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = nd.Spec("maskrcnn_cpresnet50_fpn", 2, decompositions=DECOMPOSED, options=TINY)
    nd.save(nd.build(spec), spec, tmp_path / "mask.safetensors")
    words = [str(tmp_path / "mask.safetensors"), "--image-size", "64", "--repeats", "1"]
    assert main(["benchmark", *words, "--parts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "batch 1x3x64x64, 1 runs of each network in turn" in lines
    assert "fixed for each image: 20 proposals, 1 detection" in lines
    assert sum(line.startswith(("dense ", "dense, ", "file ", "file, ")) for line in lines) == 4
    start = next(i for i, line in enumerate(lines) if line.startswith("ms by part"))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start + 2 :]]
    table = {name: [*map(float, times)] for name, *times in rows}
    assert list(table) == ["backbone", "FPN", "RPN", "box head", "mask head", "rest"]
    assert all(len(times) == 4 and min(times) > 0 for times in table.values())


def test_parts_are_timed_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    net[0].register_forward_hook(lambda module, args, output: time.sleep(0.05))
    with timed_parts(net, {"first": ["0"], "second": ["1"], "none": ["2"]}) as watches:
        for _ in range(2):
            net(torch.rand(1, 4))
    assert {part: watch.count for part, watch in watches.items()} == {"first": 2, "second": 2}
    assert watches["first"].seconds >= 0.1 > watches["second"].seconds
    count = watches["first"].count
    net(torch.rand(1, 4))
    assert watches["first"].count == count, "only within the block"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.pth"], 3, "none.pth: no such file"),
        (["NET", "--repeats", "0"], 2, "--repeats is 0; expected at least 1"),
        (["NET", "--image-size", "0"], 2, "--image-size is 0; expected at least 1"),
        (["NET", "--parts"], 2, "a resnet56_cifar: expected a detector"),
        (["NET", "--device", "tpu"], 2, "device tpu: not available here"),
    ],
)
def test_bad_input(words: list[str], code: int, message: str, small_net: Path, refused: Refused) -> None:
    refused(lambda: main(["benchmark", *fill(words, {"NET": small_net})]), code, message)
