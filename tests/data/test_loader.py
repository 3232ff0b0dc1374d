"""Processes that read data: they leave SIGTERM to the training process, and end with it whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT
from PIL import Image

from norton_det.data import cifar
from norton_det.data.loader import PATIENCE, load
from norton_det.errors import DataError, UsageError


def test_readers_ignore_sigterm_and_end_with_the_process_that_reads() -> None:
    script = Path(__file__).with_name("reading_process.py")
    options = {"env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, script], **options)
    try:
        lines = process.communicate(timeout=180)[1].splitlines()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the process waits for those that read")
    assert lines[0] == "True True"
    assert lines[-1] == "RuntimeError: failed while others read"
    assert process.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left of the group


class Fatal:
    """Items of which reading one kills the process that reads it, or takes for ever."""

    def __init__(self, end: str) -> None:
        self.end = end

    def __getitem__(self, index: int) -> int:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL) if self.end == "killed" else time.sleep(1000)
        return index

    def name_of(self, index: int) -> str:
        return f"{index}.png"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "told"), [("killed", "was ended by SIGKILL"), ("hangs", f"gave no batch in 1 s ({PATIENCE})")]
)
def test_what_a_process_read_that_is_killed_or_hangs_is_named(
    end: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    order = torch.arange(12)
    reading = iter(load(Fatal(end), order, torch.zeros(12, dtype=torch.int64), list(order.split(2)), workers=2))
    start = time.monotonic()
    with pytest.raises(DataError) as raised:
        list(reading)
    assert str(raised.value) == f"5.png: the process that reads {told}"
    assert time.monotonic() - start < 30


def test_no_more_processes_read_than_there_are_batches() -> None:
    loader = load(range(4), torch.arange(4), None, [*torch.arange(4).split(2)], workers=8)
    assert loader.num_workers == 2
    assert torch.cat([*loader]).tolist() == [*range(4)]
    assert load(range(0), torch.arange(0), None, [], workers=2).num_workers == 0


@pytest.mark.slow
def test_the_image_of_a_class_folder_whose_reader_is_killed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("black", "white"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), name).save(tmp_path / "train" / name / "1.png")

    def read(path: str) -> Image.Image:
        if "white" in path and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.open(path)

    monkeypatch.setattr(cifar, "read_rgb", read)
    with pytest.raises(DataError, match=r"white/1\.png: the process that reads was ended by SIGKILL"):
        cifar.read_cifar(tmp_path, "train", workers=1)


def test_loading_leaves_the_random_state_as_it_is() -> None:
    order = torch.arange(4)
    before = torch.get_rng_state()
    list(load(range(4), order, torch.zeros(4, dtype=torch.int64), list(order.split(2))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_the_limit_of_a_wait_is_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, text)
    with pytest.raises(UsageError, match=f"{PATIENCE} is '{text}'; expected seconds, or 0 to wait for ever"):
        load(range(2), torch.arange(2), torch.zeros(2, dtype=torch.int64), [torch.arange(2)])
