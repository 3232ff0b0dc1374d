"""The demo: every step runs, and the report has what was found; wrong arguments."""

import json
from pathlib import Path

import pytest
from conftest import Refused, tool
from PIL import Image

import norton_det as nd


@pytest.mark.slow
def test_a_small_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    words = ["--output", str(out), "--train", "8", "--val", "2", "--size", "64", "--configurations", "1:[0.5]*20"]
    assert tool("demo").main([*words, "--epochs", "1", "--finetune-epochs", "1"]) == 0
    dense, small = json.loads((out / "report.json").read_text())["rows"]
    assert [row["setting"] for row in (dense, small)] == ["dense", "1:[0.5]*20"]
    for row, folder in ((dense, out / "dense"), (small, out / "setting1")):
        net, spec = nd.load(folder / "detector.safetensors")
        assert row["params"] == sum(parameter.numel() for parameter in net.parameters())
        assert row["macs"] == nd.count_complexity(spec).macs
        assert row["metrics"] == json.loads((folder / "metrics.json").read_text())
    assert small["macs"] < dense["macs"]
    assert [len(row["steps"]) for row in (dense, small)] == [3, 3]
    commands = [step["command"] for row in (dense, small) for step in row["steps"]]
    shown = capsys.readouterr().out
    assert all(f"$ {command}\n" in shown for command in commands)
    with Image.open(out / "detections.png") as drawn:
        assert drawn.width >= 2 * 64


def test_wrong_arguments(tmp_path: Path, refused: Refused) -> None:
    new = tmp_path / "new"
    for words, message in (
        (["--output", str(tmp_path)], "exists already; expected a new folder"),
        (["--output", str(new), "--train", "0"], "--train is 0; expected at least 1"),
        (["--output", str(new), "--configurations", "two"], "'two'"),
        (["--output", str(new), "--device", "tpu"], "device tpu: not available"),
    ):
        refused(lambda words=words: tool("demo").main(words), 2, message, unwritten=new)
