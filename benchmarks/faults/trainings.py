"""Small trainings in forked processes, which are ended in some way, resumed, and compared with undisturbed ones."""

import atexit
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import util as multiprocessing_util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import norton_det as nd
from benchmarks.faults.differences import READ, difference
from norton_det.cli import train_cls, train_det, training_run  # noqa: F401  (children have no time to import)
from norton_det.cli.main import main
from norton_det.data import make_shapes
from norton_det.models import ARCHITECTURES
from norton_det.runtime.run_folder import LOCK
from norton_det.runtime.signals import SIGNALS

STEPS = 12
"""Updates of each training: 3 epochs of 4."""
GONE = 30.0
"""Seconds within which all processes of a training are to be gone."""
DETECTOR = "fasterrcnn_cpresnet50_fpn"
_TINY = {
    "min_size": 64,
    "max_size": 64,
    "anchor_sizes": [[8], [16], [32], [64], [128]],
    **{f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")},
    "box_detections_per_img": 5,
}
_COST = ("macs", "params", "dense_macs", "dense_params")
_SUBREAPER = 36  # of Linux' prctl: children of children that have ended become this process's


class Setting(NamedTuple):
    """What is trained, in how many processes, and how long."""

    task: str
    processes: int
    epochs: int = 3

    def __str__(self) -> str:
        return f"train_{self.task}, {self.processes} process{'es' if self.processes > 1 else ''}"


SETTINGS = [Setting(task, processes) for task in ("cls", "det") for processes in (1, 2)]
Before = Callable[[int], object]
"""Called in a process before it trains, with its rank."""


@dataclass
class Running:
    """A training that goes on: its processes by rank, and what they have said."""

    pids: list[int]
    log: Path
    codes: dict[int, int]

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some ranks, all by default; those that have ended do not get it."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if not self._has_ended(rank):
                os.kill(self.pids[rank], number)

    def wait(self, seconds: float = GONE) -> list[int] | None:
        """Return the exit codes by rank, those of a signal negative; None, and they are killed, if one goes on."""
        end = time.monotonic() + seconds
        while sum(self._has_ended(rank) for rank in range(len(self.pids))) < len(self.pids):
            if time.monotonic() > end:
                self.signal(signal.SIGUSR2)  # it says where it is
                time.sleep(1)
                self.signal(signal.SIGKILL)
                self.wait()
                return None
            time.sleep(0.01)
        return [self.codes[rank] for rank in range(len(self.pids))]

    def said(self) -> str:
        """Return what the ranks have written to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def _has_ended(self, rank: int) -> bool:
        if rank not in self.codes:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if pid:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        return rank in self.codes


class Trainings:
    """Trainings of small networks on a few images.

    Args:
        folder: for networks, images and undisturbed trainings.
    """

    def __init__(self, folder: Path) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
        self.folder = folder
        self._made: dict[str, Path] = {}
        self._undisturbed: dict[Setting, tuple[Path, float]] = {}

    def words(self, setting: Setting, out: Path) -> list[str]:
        """Return the command that trains in a folder."""
        data, net = self._data(setting.task), self._net(setting.task)
        shared = f"--device cpu -j 0 --print-freq 1 --no-plots --weights {net} --data-path {data}"
        size = (4 if setting.task == "cls" else 2) // setting.processes
        own = "--model-ema --model-ema-steps 2 --model-ema-decay 0.9 --mixup-alpha 0.2 --lr 0.02"
        own = own if setting.task == "cls" else f"--model {DETECTOR} --lr 0.002"
        line = f"train-{setting.task} {shared} --epochs {setting.epochs} -b {size} {own} --output-dir {out}"
        return line.split()

    def undisturbed(self, setting: Setting) -> tuple[Path, float]:
        """Return the folder of a training that nothing disturbs, and its seconds.

        Raises:
            RuntimeError: it fails.
        """
        if setting not in self._undisturbed:
            out = self.folder / f"{setting.task}{setting.processes}_{setting.epochs}"
            start = time.monotonic()
            running = self.start(setting, self.words(setting, out), out.with_suffix(".log"))
            codes = running.wait(300)
            if codes is None or any(codes):
                raise RuntimeError(f"the undisturbed training ends with {codes}: {running.said()[-2000:]}")
            self._undisturbed[setting] = out, time.monotonic() - start
        return self._undisturbed[setting]

    def start(
        self, setting: Setting, words: Sequence[str], log: Path, before: Before = lambda rank: None, **environment: str
    ) -> Running:
        """Start a training in forked processes."""
        shared = {**environment}
        if setting.processes > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            shared |= {"WORLD_SIZE": str(setting.processes)}
        pids = []
        sys.stdout.flush()
        for rank in range(setting.processes):
            pid = os.fork()
            if pid == 0:
                own = {"RANK": str(rank)} if setting.processes > 1 else {}
                _become(words, log, {**shared, **own}, partial(before, rank))
            pids.append(pid)
        return Running(pids, log, {})

    def resume(self, setting: Setting, out: Path, log: Path) -> str:
        """Go on with a training in its folder, or begin it; return what is wrong with its end, "" if nothing is."""
        words = [*self.words(setting, out), *(["--resume", str(out)] if out.exists() else [])]
        running = self.start(setting, words, log)
        codes = running.wait(300)
        if codes is None or any(codes):
            return f"resuming ends with {codes}: {running.said()[-400:]}"
        return self.difference(setting, out)

    def difference(self, setting: Setting, out: Path) -> str:
        """Return how the folder of a training differs from that of the undisturbed one; "" if it does not."""
        theirs = self.undisturbed(setting)[0]
        names = [{path.name for path in folder.iterdir()} for folder in (out, theirs)]
        if names[0] != names[1]:
            return f"other files: {sorted(names[0] ^ names[1])}"
        for name in sorted(names[0]):
            read = READ.get(Path(name).suffix)
            if read is not None and (found := difference(read(out / name), read(theirs / name), name)):
                return found
        return ""

    def left(self) -> list[str]:
        """Return the names of processes that trainings have left, once they had :data:`GONE` to end."""
        end = time.monotonic() + GONE
        while (names := _children()) and time.monotonic() < end:
            time.sleep(0.05)
        return names

    def _data(self, task: str) -> Path:
        path = self.folder / f"{task}_data"
        if not path.exists():
            _make_classes(path) if task == "cls" else make_shapes(path, train=8, val=3, size=64)
        return path

    def _net(self, task: str) -> Path:
        path = self.folder / f"{task}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            spec = nd.Spec(DETECTOR, 4, options=_TINY) if task == "det" else nd.Spec("vgg16_bn_cifar", 2)
            scope, arch = None, ARCHITECTURES[spec.arch]
            if task == "det":
                scope, arch = "detector", arch.scoped("detector")
            rates = [0.9] * len(arch.rate_order)
            nd.save(*nd.prune(nd.build(spec), spec.arch, rates, criterion="norm", scope=scope), path)
        return path


def temporary_files(folder: Path) -> list[str]:
    """Return the names of temporary files in a folder: all that are hidden, whoever wrote them, but for the lock."""
    hidden = folder.rglob(".*") if folder.exists() else []
    return [path.name for path in hidden if path.name != LOCK]


def _become(words: Sequence[str], log: Path, environment: dict[str, str], before: Callable[[], object]) -> None:
    """Be a process that trains, from the beginning of the command to the exit."""
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        logging.getLogger().handlers.clear()
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        faulthandler.register(signal.SIGUSR2, sys.stderr)
        os.environ.update(environment)
        torch.set_num_threads(1)
        training_run.cost_of = lambda spec: dict.fromkeys(_COST, 1)  # it takes longer than all else
        sys.argv[:] = ["norton-det", *words]
        atexit._clear()  # what is the parent's
        tqdm.set_lock(threading.RLock())  # its own is the parent's as well: one that is killed with it would stop all
        atexit.register(multiprocessing_util._exit_function)  # type: ignore[attr-defined]
        before()
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def descendants(pid: int | None = None) -> list[int]:
    """Return the processes below one, this one by default."""
    pid = os.getpid() if pid is None else pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended just now
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def _children() -> list[str]:
    """Return the names of this process's children, after taking leave of those that have ended."""
    names = []
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if not os.waitpid(int(pid), os.WNOHANG)[0]:
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _make_classes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label, name in enumerate(("black", "white")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(60 + 120 * label, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
