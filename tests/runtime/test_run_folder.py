"""Folders of runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Refused

from norton_det.runtime.run_folder import is_before_checkpoints, new_run_folder, refuse_other_run, remove_run


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "net-4").mkdir()
    (tmp_path / "net-x").mkdir()
    (tmp_path / "other-9").mkdir()
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder("net", tmp_path), range(16)))
    assert sorted(int(folder.name.removeprefix("net-")) for folder in folders) == list(range(5, 21))


@pytest.mark.parametrize(
    "name",
    ["checkpoint.pth", "metrics.jsonl", "best.safetensors", "model_3.pth", "args.yaml", "log.txt"],
)
def test_a_folder_with_a_run_is_refused(name: str, tmp_path: Path, refused: Refused) -> None:
    refuse_other_run(tmp_path / "none")
    for empty in ("metrics.jsonl", "log.txt"):  # of a run that failed at once
        (tmp_path / empty).touch()
    (tmp_path / "photograph.png").touch()
    refuse_other_run(tmp_path)
    (tmp_path / name).write_text("{}\n")
    message = f"--output-dir {tmp_path}: holds another run ({name}); expected a new folder, --resume {tmp_path} to"
    refused(lambda: refuse_other_run(tmp_path), 2, message, "or --overwrite")


def test_only_files_of_a_training_are_removed(tmp_path: Path) -> None:
    for name in ("checkpoint.pth", "model_3.pth", "best.safetensors", "log.txt", "model_zoo.pth", "mine.safetensors"):
        (tmp_path / name).touch()
    remove_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model_zoo.pth", "mine.safetensors"}


def test_a_run_without_a_checkpoint_is_told_from_other_folders(tmp_path: Path) -> None:
    assert is_before_checkpoints(tmp_path), "killed when it had made its folder"
    assert not is_before_checkpoints(tmp_path / "none")
    (tmp_path / "photograph.png").touch()
    assert not is_before_checkpoints(tmp_path), "not that of a run"
    (tmp_path / "args.yaml").touch()
    assert is_before_checkpoints(tmp_path)
    (tmp_path / "model_0.pth").touch()
    assert not is_before_checkpoints(tmp_path)
