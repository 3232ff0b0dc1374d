"""What the tests share."""

import importlib
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.cli import training_run
from norton_det.cli.main import main
from norton_det.data import make_shapes
from norton_det.errors import DataError, UsageError
from norton_det.runtime.run_files import read_lines

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in the background like that
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOOLS = Path(__file__).parent.parent / "tools"
# Settings with which a detector runs in a test's time: tiny images, few proposals.
TINY = {
    "min_size": 64,
    "max_size": 64,
    "anchor_sizes": [[8], [16], [32], [64], [128]],
    **{f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")},
    "box_detections_per_img": 5,
}


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    """What the package logs is seen by every test, whether or not a command ran before in the same process."""
    caplog.set_level(logging.INFO, "norton_det")


def tool(name: str) -> Any:
    """Return what the shim ``tools/NAME.py`` runs: its ``main`` takes the arguments and returns the exit code."""
    outside = {"benchmark": "benchmarks.run", "speed": "benchmarks.report", "results": "scripts.results_page"}
    if name in outside:
        return importlib.import_module(outside[name])
    more = ["--no-plots"] if name.startswith("train_") else []  # tests/cli/test_training_run.py has plots
    return SimpleNamespace(main=lambda words: main([name.replace("_", "-"), *words, *more]))


def epochs_in(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a training's epochs, without those of its iterations."""
    return [line for line in read_lines(folder / "metrics.jsonl") if "iteration" not in line]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (TOOLS.parent, TOOLS.parent / "tests"))),
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums depend on how many add them
}


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """Start Python in a process of its own."""
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True)


class AtLine(logging.Handler):
    """Sends this process SIGTERM when a line is logged."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.line):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of ``torch.save`` is read from now on, by its path."""
    counts, load = Counter[str](), torch.load

    def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
        counts[str(file)] += 1
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    return counts


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings do not count the costs of their networks, which takes as long as a test; one test counts them."""
    names = ("macs", "params", "dense_macs", "dense_params")
    monkeypatch.setattr(training_run, "cost_of", lambda spec: dict.fromkeys(names, 1))


def fill(words: list[str], places: dict[str, Path]) -> list[str]:
    """Put paths in the place of their names: OUT/x.json and OUT, where OUT is one of ``places``."""
    parts = [word.partition("/") for word in words]
    return [f"{places[head]}{slash}{tail}" if head in places else head + slash + tail for head, slash, tail in parts]


Refused = Callable[..., None]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return the check that wrong input is refused: refused(run, code, *parts, unwritten=folder).

    A command returns the code and prints one line of error; a function raises the error that a command would return
    the code for. The message contains all parts, and the folder is left empty or not there at all.
    """

    def check(run: Callable[[], object], code: int, *parts: str, unwritten: Path | None = None) -> None:
        capsys.readouterr()
        try:
            returned = run()
        except (UsageError, DataError) as error:
            returned, message = 2 if isinstance(error, UsageError) else 3, str(error)
        else:
            shown = capsys.readouterr()
            assert shown.out == ""
            message = shown.err.strip().splitlines()[-1]
            assert message.startswith("error: ")
        assert returned == code, message
        for part in parts:
            assert part in message
        assert unwritten is None or not unwritten.exists() or not list(unwritten.iterdir()), "nothing is written"

    return check


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small COCO folder."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=6, val=3, size=64)
    return folder


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 32x32 images: noise about a grey level that tells the class."""
    folder = tmp_path_factory.mktemp("data") / "classes"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("black", "grey", "white")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (rng.normal(60 + 70 * label, 20, (32, 32, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def small_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed classifier of three classes that trains in a test's time."""
    path = tmp_path_factory.mktemp("nets") / "small.safetensors"
    options = ["--rank", "1", "--rates", "[0.]+[0.8]*29", "--num-classes", "3"]
    assert tool("compress").main(["--arch", "resnet56_cifar", *options, "--output", str(path)]) == 0
    return path
