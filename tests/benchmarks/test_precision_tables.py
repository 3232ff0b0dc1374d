"""The benchmark of lower precision, on small networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from statistics_of_norms import with_statistics

import norton_det as nd
from benchmarks import precision
from benchmarks.precision import main


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A dense network and a compressed one of the same kind."""
    torch.manual_seed(0)
    dense = nd.Spec("resnet56_cifar", 10)
    small, spec = nd.compress(None, arch="resnet56_cifar", rates="[0.]+[0.8]*29")
    paths = [str(tmp_path / name) for name in ("dense.safetensors", "small.safetensors")]
    nd.save(with_statistics(nd.build(dense)), dense, paths[0])
    nd.save(with_statistics(small), spec, paths[1])
    return paths


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runtimes", "onnxruntime", "--repeats", "2", "--calibrate-count", "4", "--profile"]
    report = tmp_path / "report.json"
    assert main(["--files", *files, *words, "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "compressed, int8:" in text
    assert "QLinearConv" in text
    rows: list[dict[str, Any]] = json.loads(report.read_text())["rows"]
    assert [(row["network"], row["precision"]) for row in rows] == [
        (network, kind) for network in ("dense", "compressed") for kind in ("float32", "int8")
    ]
    by_name = {(row["network"], row["precision"]): row for row in rows}
    assert by_name["dense", "float32"]["ratio"] == 1
    for network in ("dense", "compressed"):
        assert by_name[network, "float32"]["error"] < 1e-4 < by_name[network, "int8"]["error"] < 0.3
    assert by_name["dense", "int8"]["mb"] < by_name["dense", "float32"]["mb"] / 2
    assert all(row["peak_mb"] > 0 for row in rows)


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    assert main(["--runtimes", "openvino"]) == 2
    assert "openvino: left out, since openvino or nncf is not installed" in capsys.readouterr().err
