"""Runs that are killed and go on, and runs in several processes."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TOOLS, AtLine, epochs_in, start, tool
from gloo_process import train

import norton_det as nd
from norton_det.cli.common import EXIT_TERMINATED
from norton_det.errors import TerminatedError
from norton_det.evaluation.accuracy import evaluate
from norton_det.models.state_dicts import read_state_dict
from norton_det.runtime.signals import SIGNALS, catch_signals, end_if_stopped


def recipe(classes: Path, net: Path, out: Path) -> list[str]:
    words = ["--data-path", str(classes), "--weights", str(net), "--output-dir", str(out), "--device", "cpu", "-j", "0"]
    words += ["-b", "4", "--epochs", "3", "--lr", "0.02", "--mixup-alpha", "0.2", "--print-freq", "1"]
    words += ["--model-ema", "--model-ema-steps", "2", "--model-ema-decay", "0.9"]
    return [*words, "--lr-scheduler", "cosineannealinglr", "--lr-warmup-epochs", "1", "--lr-schedule-by", "iteration"]


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**content["model"], **content["model_ema"]}, [{**line, "seconds": 0} for line in lines]


@pytest.fixture(scope="module")
def whole(classes: Path, small_net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert tool("train_cls").main(recipe(classes, small_net, folder)) == 0
    return folder


def assert_same_outcome(ours: Path, theirs: Path) -> None:
    (weights, lines), (expected, expected_lines) = outcome(ours), outcome(theirs)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert lines == expected_lines
    for name in ("last.safetensors", "best.safetensors"):
        mine, other = read_state_dict(ours / name), read_state_dict(theirs / name)
        assert all(torch.equal(mine[key], other[key]) for key in other), name


def test_sigterm_ends_a_run_after_its_batch_and_it_goes_on_exactly(
    whole: Path,
    classes: Path,
    small_net: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = recipe(classes, small_net, tmp_path)
    logger = logging.getLogger("norton_det")
    monkeypatch.setattr(logger, "handlers", [AtLine("Epoch: [1]  [2/6]")])
    with caplog.at_level("INFO", "norton_det"):
        assert tool("train_cls").main(words) == EXIT_TERMINATED
    checkpoint = tmp_path / "checkpoint.pth"
    expected = f"terminated: stopped at epoch 1, batch 4; resume with --resume {checkpoint}"
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert tool("train_cls").main([*words, "--resume", str(checkpoint)]) == 0
    assert_same_outcome(tmp_path, whole)


def test_a_run_that_is_killed_goes_on_from_its_last_epoch(
    whole: Path, classes: Path, small_net: Path, tmp_path: Path
) -> None:
    words = recipe(classes, small_net, tmp_path)
    process = start(TOOLS / "train_cls.py", *words)
    for line in process.stderr:
        if line.startswith("Epoch: [1]  [2/6]"):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["epoch"] == 0
    assert tool("train_cls").main([*words, "--resume", str(tmp_path / "checkpoint.pth")]) == 0
    assert_same_outcome(tmp_path, whole)


def test_other_flags_on_resuming_are_told(
    whole: Path, classes: Path, small_net: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*recipe(classes, small_net, tmp_path), "--resume", str(whole / "checkpoint.pth")]
    with caplog.at_level("WARNING"):
        assert tool("train_cls").main(words) == 0
        assert not [r for r in caplog.records if "was trained with" in r.message]
        assert tool("train_cls").main([*words, "--mixup-alpha", "0.5"]) == 0
    assert "was trained with mixup_alpha 0.2, now 0.5" in caplog.text


@pytest.fixture(scope="module")
def pair(classes: Path, small_net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of gloo_process.py leave: RANK.pt, RANK.log, and a run of train_cls.py in runs/."""
    folder = tmp_path_factory.mktemp("pair")
    words = [*recipe(classes, small_net, folder), "--epochs", "2"]
    at = words.index("--output-dir")
    del words[at : at + 2]
    script = Path(__file__).with_name("gloo_process.py")
    running = [start(script, folder, *words, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    for rank, process in enumerate(running):
        (folder / f"{rank}.log").write_text(process.communicate()[1])
    assert [process.returncode for process in running] == [0, 0], (folder / "0.log").read_text()
    return folder


def test_two_processes_train_to_the_weights_of_one(pair: Path) -> None:
    one = train("env://")
    first, second = (torch.load(pair / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - value).abs().max() < 1e-12, name
    assert first["counts"][0] == 83


def test_two_processes_write_one_set_of_files(pair: Path, small_net: Path) -> None:
    told = [(pair / f"{rank}.log").read_text() for rank in (0, 1)]
    assert "Test: Acc@1" in told[0]
    assert "of 12 images" in told[0]
    assert "Epoch" not in told[1]
    (run,) = (pair / "runs").iterdir()  # both have agreed on it
    assert run.name == "resnet56_cifar-1"
    assert [line["epoch"] for line in epochs_in(run)] == [0, 1]
    assert nd.load(run / "last.safetensors")[1] == replace(nd.load(small_net)[1], classes=("black", "grey", "white"))


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_kept_within_the_block_alone(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_signals() as came:
        assert not came()
        os.kill(os.getpid(), number)
        time.sleep(0)  # Python runs the handler between two instructions
        assert came()
        with pytest.raises(TerminatedError, match=f"{number.name} received") as raised:
            end_if_stopped()
        assert raised.value.signal == number
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_but_not_the_same_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with catch_signals() as came:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert came()
        monkeypatch.setattr("norton_det.runtime.signals._SAME", 0)
        with pytest.raises(TerminatedError):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_evaluation_ends_at_a_signal() -> None:
    seen = []

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(9):
            seen.append(number)
            yield torch.ones(1, 3, 1, 1), torch.zeros(1, dtype=torch.int64)
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with catch_signals(), pytest.raises(TerminatedError):
        evaluate(torch.nn.Flatten(), batches(), torch.device("cpu"))
    assert seen == [0, 1, 2, 3, 4]
