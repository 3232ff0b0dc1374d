"""The folder of a training: its name, what is in it, what is refused, kept, replaced and gone on with."""

import argparse
import importlib
import json
import logging
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from conftest import Refused, epochs_in, tool

import norton_det as nd
from norton_det.cli import training_run
from norton_det.cli.common import Parser
from norton_det.cli.main import COMMANDS, _module, main
from norton_det.cli.resumed_folder import with_beginning
from norton_det.cli.training_run import coco_facts
from norton_det.data import CocoDataset, make_shapes
from norton_det.runtime.run_files import read_lines

cost_of = training_run.cost_of  # the tests' fixture replaces it
MODEL = "resnet56_cifar"


@pytest.fixture
def words(classes: Path, small_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training in a folder of its own, without ``--output-dir``."""
    monkeypatch.chdir(tmp_path)
    line = f"--data-path {classes} --weights {small_net} --device cpu -j 0 -b 8 --lr 0.01 --epochs 2 --log-every 2"
    return line.split()


def train(words: list[str], *more: object) -> int:
    return tool("train_cls").main([*words, *map(str, more)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_without_a_folder_makes_the_next_one(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        caplog.clear()
        assert train(words, "--epochs", 1) == 0
        folder = Path("runs") / f"{MODEL}-{number}"
        assert caplog.messages[0] == f"Output: {folder}"
        assert {"checkpoint.pth", "args.yaml", "log.txt", "metrics.jsonl", "best.safetensors"} <= contents(
            folder
        ).keys()
    content = yaml.safe_load((folder / "args.yaml").read_text())
    assert content["command"] == ["norton-det", "train-cls", *words, "--epochs", "1", "--no-plots"]
    assert (content["args"]["epochs"], content["args"]["output_dir"]) == (1, str(folder))
    assert content["versions"].keys() == {"python", "torch", "torchvision", "norton_det"}
    assert content["classes"] == ["black", "grey", "white"]
    assert (content["data"]["train"]["images"], content["data"]["val"]["images"]) == (24, 12)
    assert content["cost"].keys() == {"macs", "params", "dense_macs", "dense_params"}
    lines = (folder / "log.txt").read_text().splitlines()
    assert lines[0].endswith(f"  Output: {folder}")
    assert [line for line in lines if line.endswith(f"  Model:           {MODEL}, compressed")]
    assert [line for line in lines if "Epoch: [0]  [2/3]" in line and "run: " in line]
    assert [line.get("iteration") for line in read_lines(folder / "metrics.jsonl")] == [1, 2, None]


def test_costs_are_those_of_the_network_and_of_the_dense_one() -> None:
    spec = nd.Spec(MODEL, 10, widths={"layer1": 8})
    ours, dense = nd.count_complexity(spec), nd.count_complexity(nd.Spec(MODEL, 10))
    assert ours.macs < dense.macs
    expected = {"macs": ours.macs, "params": ours.params, "dense_macs": dense.macs, "dense_params": dense.params}
    before = torch.get_rng_state()
    assert cost_of(spec) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_is_refused_leaves_no_folder(words: list[str], tmp_path: Path, refused: Refused) -> None:
    refused(lambda: train(words, "-b", 99), 2, "batch_size is 99", unwritten=tmp_path)
    refused(lambda: train(words, "--patience", 0), 2, "--patience is 0; expected at least 1", unwritten=tmp_path)
    refused(lambda: train(words, "--log-every", 0), 2, "--log-every is 0; expected at least 1", unwritten=tmp_path)


def test_a_run_that_fails_says_so_in_its_log(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("norton_det.training.classification.evaluate", evaluate)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(words)
    lines = (Path("runs") / f"{MODEL}-1" / "log.txt").read_text()
    assert "RuntimeError: out of memory\nTraceback" in lines
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, training_run.RunLog)]


def test_a_report_is_drawn_and_no_failure_of_it_loses_a_run(
    words: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["train-cls", *words, "--epochs", "1"]) == 0
    folder = Path("runs") / f"{MODEL}-1"
    assert {"report.html", "curves.png"} <= contents(folder).keys()
    assert f"Report: {folder / 'report.html'}" in caplog.messages

    def fail(runs: list[str]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("norton_det.reporting.report.write_report", fail)
    assert main(["train-cls", *words, "--epochs", "1"]) == 0
    expected = f"runs/{MODEL}-2: the report could not be written: OSError: no space left; norton-det report runs/"
    assert expected in caplog.text


def test_another_run_is_refused_replaced_and_gone_on_with(
    words: list[str], tmp_path: Path, refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert train(words, "--output-dir", out, "--keep", "all") == 0
    before = contents(out)
    assert {"model_0.pth", "model_1.pth"} <= before.keys()
    refused(lambda: train(words, "--output-dir", out), 2, f"{out}: holds another run (checkpoint.pth)")
    # A finished one says so; nothing is written.
    caplog.clear()
    best = max(epochs_in(out), key=lambda line: line["top1"])
    assert train(words, "--resume", out) == 0
    expected = f"{out / 'checkpoint.pth'}: is finished after 2 epochs: best top1 {best['top1']:.4f} (epoch "
    assert [message for message in caplog.messages if message.startswith(expected)]
    assert contents(out) == before
    # With more epochs it goes on in its folder, and in another one in the same way.
    more = ["--epochs", 4, "--keep", "all", "--resume"]
    assert train(words, *more, out / "model_1.pth", "--output-dir", tmp_path / "other") == 0
    assert train(words, *more, out) == 0
    ours, theirs = (
        [{**line, "seconds": 0} for line in read_lines(f / "metrics.jsonl")] for f in (out, tmp_path / "other")
    )
    assert ours == theirs
    assert [line["epoch"] for line in ours if "iteration" not in line] == [0, 1, 2, 3]
    # The last epochs of a new run are not those of an old one.
    assert train(words, "--output-dir", out, "--overwrite", "--epochs", 1) == 0
    assert [path.name for path in out.glob("model_*.pth")] == ["model_0.pth"]
    assert [line["epoch"] for line in epochs_in(out)] == [0]
    assert (out / "log.txt").read_text().count("Model:") == 1


def test_patience_ends_a_run_and_its_resumption(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([10.0, 30.0, 20.0, 30.0, 99.0])
    accuracy = lambda *args, **options: argparse.Namespace(top1=next(values), top5=100.0)  # noqa: E731
    monkeypatch.setattr("norton_det.training.classification.evaluate", accuracy)
    words = [*words, "--epochs", "5", "--patience", "2", "--output-dir", str(tmp_path)]
    assert train(words) == 0
    assert [line["top1"] for line in epochs_in(tmp_path)] == [10, 30, 20, 30]
    assert {path.name for path in tmp_path.glob("model_*.pth")} == {"model_1.pth", "model_2.pth", "model_3.pth"}
    assert torch.load(tmp_path / "model_1.pth", weights_only=True)["epoch"] == 1
    assert "Stopped: no better top1 in 2 evaluations" in caplog.messages
    before = contents(tmp_path)
    assert train(words, "--resume", tmp_path) == 0
    assert "is finished after 4 epochs: best top1 30.0000 (epoch 1), last 30.0000 (epoch 3)" in caplog.text
    assert contents(tmp_path) == before
    assert train(words, "--resume", tmp_path, "--patience", 3) == 0
    assert epochs_in(tmp_path)[-1]["top1"] == 99


@pytest.mark.parametrize("there", [True, False])
def test_every_command_has_one_rule_for_devices(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    found = {}
    for name in COMMANDS:
        module, parser = importlib.import_module(_module(name)), Parser()
        module.add_arguments(parser)
        found.update((name, action.default) for action in parser._actions if action.dest == "device")
    for name in ("compress", "search"):
        assert found.pop(name) is None, "set where it is used, since an allocation is on the CPU"
    assert set(found.values()) == {"cuda" if there else "cpu"}
    assert {
        "accuracy",
        "train-cls",
        "train-det",
        "eval-cls",
        "eval-det",
        "benchmark",
        "visualize",
        "demo",
    } <= found.keys()


def test_a_run_is_not_resumed_over_another_one(words: list[str], refused: Refused) -> None:
    for folder in ("a", "b"):
        assert train(words, "--epochs", 1, "--output-dir", folder) == 0
    resume = ["--resume", "a", "--output-dir", "b"]
    before = contents(Path("b"))
    refused(lambda: train(words, *resume), 2, "--output-dir b: holds another run")
    refused(lambda: train(words, "--test-only", *resume), 2, "--output-dir b: holds another run")
    assert contents(Path("b")) == before
    assert train(words, *resume, "--overwrite") == 0
    content = yaml.safe_load(Path("b/args.yaml").read_text())
    assert (content["args"]["output_dir"], content["args"]["epochs"]) == ("a", 1)
    assert [(each["args"]["output_dir"], each["args"]["epochs"]) for each in content["resumed"]] == [("b", 2)]
    assert [line["epoch"] for line in epochs_in(Path("b"))] == [0, 1]
    assert (
        train(words, "--resume", "b", "--output-dir", "b", "--overwrite", "--epochs", 3) == 0
    )  # its own: nothing lost
    assert [line["epoch"] for line in epochs_in(Path("b"))] == [0, 1, 2]


def test_a_run_that_goes_on_with_other_data_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_shapes(tmp_path / "data", train=4, val=2, size=32)
    file = tmp_path / "data/annotations/instances_train2017.json"

    def facts() -> dict[str, Any]:
        return {"data": {"train": coco_facts(CocoDataset(tmp_path / "data", "train", train=True))}}

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    (tmp_path / "args.yaml").write_text(yaml.safe_dump(facts()))
    assert with_beginning(tmp_path, facts())["resumed"] == [facts()]
    assert not warnings()
    began, content = facts(), json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(with_beginning(tmp_path, facts())))
    (message,) = warnings()
    assert message.startswith(f"the annotation file of train had sha256 {began['data']['train']['sha256'][:12]} before")
    with_beginning(tmp_path, facts())
    assert len(warnings()) == 1, "as the last time"
    del content["annotations"][0]
    file.write_text(json.dumps(content))
    with_beginning(tmp_path, facts())
    assert re.match(r"the data of train had objects \d+ before, and has \d+ now; the training", warnings()[-1])
    for broken in ("resumed: 7", "data: [1]", "data: {train: 3}", "resumed: [[]]"):
        (tmp_path / "args.yaml").write_text(broken)
        with_beginning(tmp_path, facts())
    assert len(warnings()) == 2
    (tmp_path / "args.yaml").write_text("a: [")
    assert with_beginning(tmp_path, facts()) == facts()
    assert (tmp_path / "damaged_args.yaml").read_text() == "a: ["
    assert warnings()[2].endswith("; renamed to damaged_args.yaml, and written anew")


def test_one_command_begins_a_run_and_goes_on_with_it(words: list[str], refused: Refused) -> None:
    again = ["--output-dir", "run", "--resume", "./run"]
    assert train(words, "--epochs", 1, *again) == 0
    assert train(words, "--epochs", 2, *again) == 0
    assert [line["epoch"] for line in epochs_in(Path("run"))] == [0, 1]
    refused(lambda: train(words, "--output-dir", "run", "--resume", "ruin"), 3, "ruin: no such file")
    refused(lambda: train(words, "--resume", "ruin"), 3, "ruin: no such file")
    refused(lambda: train(words, "--test-only", "--output-dir", "new", "--resume", "new"), 3, "new: no such file")
    assert not Path("ruin").exists()


def test_the_newest_whole_checkpoint_is_resumed(
    words: list[str], refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(words, "--epochs", 3, "--keep", "all", "--output-dir", "run") == 0
    last, whole = Path("run/checkpoint.pth"), epochs_in(Path("run"))
    content = bytearray(last.read_bytes())
    with zipfile.ZipFile(last) as archive:
        largest = max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len)
    content[content.find(largest) + len(largest) // 2] ^= 4
    last.write_bytes(content)  # and model_2.pth with it, which is the same file
    refused(
        lambda: train(words, "--epochs", 3, "--resume", last),
        3,
        f"error: {last}: damaged: data/",
        "another checksum than when it was written; --resume run takes the newest one that is whole",
    )
    assert train(words, "--epochs", 3, "--resume", "run") == 0
    skipped = [message for message in caplog.messages if "skipped, the next older one is" in message]
    assert [message.rpartition(" ")[2] for message in skipped] == ["model_2.pth", "model_1.pth"]
    assert [line["train_loss"] for line in epochs_in(Path("run"))] == [line["train_loss"] for line in whole]


def test_a_folder_that_another_run_uses_is_refused(words: list[str], refused: Refused) -> None:
    Path("run").mkdir()
    with patch("norton_det.runtime.run_folder.locked", lambda path, text: nullcontext("process 7 on host")):
        refused(lambda: train(words, "--output-dir", "run"), 2, "--output-dir run: in use by process 7 on host")
    assert list(Path("run").iterdir()) == []


def test_an_earlier_epoch_is_resumed_without_losing_the_best(
    words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert train(words, "--keep", "all", "--output-dir", "run") == 0
    folder = Path("run")
    lines = read_lines(folder / "metrics.jsonl")
    for line in lines:
        if "top1" in line:
            line["top1"] = line["epoch"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    best = (folder / "best.safetensors").read_bytes()
    assert train(words, "--resume", folder / "model_0.pth", "--output-dir", "run") == 0
    assert "run/metrics.jsonl: lines of epochs 1 to 1 are dropped" in caplog.text
    assert (folder / "best_of_epoch_1.safetensors").read_bytes() == best
    assert [line["epoch"] for line in epochs_in(folder)] == [0, 1]
