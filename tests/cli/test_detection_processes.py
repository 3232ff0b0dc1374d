"""Detection in two processes: figures, images without objects, losses that are not finite, a crash."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start
from gloo_detection import evaluate

from norton_det.data import make_shapes


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with 5 images to evaluate on."""
    folder = tmp_path_factory.mktemp("five") / "shapes"
    make_shapes(folder, train=1, val=5, size=64)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with a single image to evaluate on."""
    folder = tmp_path_factory.mktemp("one") / "shapes"
    make_shapes(folder, train=1, val=1, size=64)
    return folder


@pytest.fixture(scope="module")
def pair(five: Path, one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of gloo_detection.py leave: RANK.pt, RANK.log, and the files of the evaluation."""
    folder = tmp_path_factory.mktemp("pair")
    script = Path(__file__).with_name("gloo_detection.py")
    running = [start(script, folder, five, one, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    (folder / "1.log").write_text(running[1].communicate()[1])
    try:
        # The second process is dead: the first one must not wait for it.
        (folder / "0.log").write_text(running[0].communicate(timeout=120)[1])
    except subprocess.TimeoutExpired:
        running[0].kill()
        pytest.fail("a process waits for one that has crashed")
    return folder


def told(folder: Path, rank: int) -> Any:
    assert (folder / f"{rank}.pt").exists(), (folder / f"{rank}.log").read_text()
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def test_two_processes_measure_what_one_does(pair: Path, five: Path, tmp_path: Path) -> None:
    metrics = evaluate(five, tmp_path)
    assert told(pair, 0)["metrics"] == told(pair, 1)["metrics"] == metrics
    results = [json.loads((folder / "coco_instances_results.json").read_text()) for folder in (pair, tmp_path)]
    assert results[0] == results[1]
    assert {result["image_id"] for result in results[0]} == {1, 2, 3, 4, 5}


def test_more_processes_than_images_measure_what_one_does(pair: Path, one: Path, tmp_path: Path) -> None:
    metrics = evaluate(one, tmp_path)
    assert told(pair, 0)["one"] == told(pair, 1)["one"] == metrics


def test_processes_without_objects_do_not_hang_the_others(pair: Path) -> None:
    first, second = (told(pair, rank)["weights"] for rank in (0, 1))
    assert len(first) > 100
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in first.values())


def test_a_loss_that_is_not_finite_in_one_process_ends_all(pair: Path) -> None:
    (kind, first), (_, second) = (told(pair, rank)["error"] for rank in (0, 1))
    assert kind == "NonFiniteLossError"
    assert first == second
    assert first.startswith("loss is nan in batch 0 of epoch 0: ")
    assert "loss_objectness nan" in first
    assert " on images 11; " in first, "those of the process whose loss it is"


def test_what_is_wrong_in_the_first_process_is_raised_in_all(pair: Path) -> None:
    assert told(pair, 0)["refused"] == told(pair, 1)["refused"] == ("DataError", "of the first one")


def test_a_signal_to_one_process_ends_the_evaluation_of_all(pair: Path) -> None:
    assert told(pair, 0)["signalled"] == told(pair, 1)["signalled"] == ("TerminatedError", "SIGUSR1 received")


def test_a_crash_ends_the_other_process(pair: Path) -> None:
    assert "RuntimeError: out of memory" in (pair / "1.log").read_text()
    assert "LostProcessError: another process of the training has ended" in (pair / "0.log").read_text()
