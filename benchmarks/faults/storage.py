"""Trainings write where the disk is full, fails, or cannot be written at all."""

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.file_events import FileEvents
from benchmarks.faults.trainings import SETTINGS, Running, Setting, Trainings, temporary_files
from norton_det.cli.common import EXIT_FAILED, EXIT_UNWRITTEN
from norton_det.errors import DataError
from norton_det.models.tensor_files import read_file

_NEW_MOUNTS, _PRIVATE, _READ_ONLY, _REMOUNT = 0x20000, 0x4000 | 1 << 18, 1, 32
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
_EVENTS = 180  # of a training, about
_SMALLEST = 100_000  # bytes; the log of a process is smaller
_WEIGHTS = (4, 3, 2, 1)
_QUICK = 2
_Fault = Callable[["Storage", Setting, Random, Path], Outcome]


class Storage(Trainings):
    """Trainings, and file systems in memory that this process alone sees, if the system lets it have them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.mounts = not (self._libc.unshare(_NEW_MOUNTS) or self._libc.mount(b"none", b"/", None, _PRIVATE, None))

    def mount(self, folder: Path, size: int, flags: int = 0) -> None:
        """Have a file system of a number of bytes at a folder."""
        folder.mkdir(exist_ok=True)
        if self._libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()):
            raise OSError(ctypes.get_errno(), "no file system in memory", str(folder))

    def unmount(self, folder: Path) -> None:
        """Take it away."""
        self._libc.umount2(os.fsencode(folder), 2)


def run(storage: Storage, index: int, random: Random, folder: Path) -> Outcome:
    """Have one fault in a training."""
    (setting,) = random.choices(SETTINGS, _WEIGHTS) if index >= _QUICK else SETTINGS[:1]
    fault = _FAULTS[index % len(_FAULTS)]
    if fault in (_full, _read_only) and not storage.mounts:
        fault = _limited  # without the right to mount, the limit of a file's size stands for a full disk
    return fault(storage, setting, random, folder)


def _failing(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    number = random.choice(_ERRORS)

    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number))

    running = _with_event(storage, setting, random, folder, fail)
    return _end(storage, setting, f"a file event fails: {errno.errorcode[number]}", folder / "out", running)


def _limited(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    size = random.randrange(_SMALLEST, 2_000_000)

    def limit(name: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    running = _with_event(storage, setting, random, folder, limit)
    return _end(storage, setting, "files can only have a size", folder / "out", running)


def _with_event(
    storage: Storage, setting: Setting, random: Random, folder: Path, act: Callable[[str], object]
) -> Running:
    events = FileEvents(folder / "out", random.randrange(_EVENTS), act)
    words = storage.words(setting, folder / "out")
    return storage.start(setting, words, folder / "0.log", lambda rank: None if rank else events.install())


def _full(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    needed = sum(path.stat().st_size for path in storage.undisturbed(setting)[0].iterdir())
    disk = folder / "disk"
    storage.mount(disk, random.randrange(_SMALLEST, int(1.5 * needed)))
    try:
        running = storage.start(setting, storage.words(setting, disk / "out"), folder / "0.log")
        running.wait(120)
        storage.mount(disk, 10 * needed, _REMOUNT)
        return _end(storage, setting, "the disk is full", disk / "out", running)
    finally:
        storage.unmount(disk)


def _read_only(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    disk = folder / "disk"
    storage.mount(disk, 2**20)
    try:
        storage.mount(disk, 2**20, _REMOUNT | _READ_ONLY)
        return _refused(storage, setting, "a read-only file system", disk / "out", folder)
    finally:
        storage.unmount(disk)


def _wrong_path(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    (folder / "file").touch()
    (folder / "loop").symlink_to(folder / "loop")
    paths = {
        "below a file": folder / "file" / "out",
        "a file": folder / "file",
        "a name too long": folder / ("x" * 300),
        "no storage": Path("/proc/out"),
        "below a device": Path("/dev/full/out"),
        "a link to itself": folder / "loop",
    }
    name = random.choice([*paths])
    return _refused(storage, setting, f"a path that is wrong: {name}", paths[name], folder)


def _other_command(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    (folder / "file").touch()
    options = {"--arch": "vgg16_bn_cifar", "--num-classes": "2", "--rank": "1", "--rates": "[0.9]*12"}
    compress = ["compress", *(word for option in options.items() for word in option)]
    shapes = ["make-shapes", "--train", "1", "--val", "1"]
    (folder / "folder.safetensors").mkdir()
    commands = {
        "make-shapes: a path below a file": [*shapes, "--output", f"{folder}/file/x"],
        "compress: a folder": [*compress, "--output", str(folder / "folder.safetensors")],
        "compress: a name too long": [*compress, "--output", str(folder / f"{'x' * 230}.safetensors")],
    }
    name = random.choice([*commands])
    running = storage.start(Setting("cls", 1), commands[name], folder / "0.log")
    codes = running.wait()
    found = _wrong_end(codes, running.said())
    return Outcome(name, not found, found)


def _control(storage: Storage, setting: Setting, random: Random, folder: Path) -> Outcome:
    running = storage.start(setting, storage.words(setting, folder / "out"), folder / "0.log")
    codes = running.wait(120)
    found = f"ended with {codes}" if any(codes or [1]) else storage.difference(setting, folder / "out")
    return Outcome("control: storage that works", not found, found)


_FAULTS: list[_Fault] = [
    *(_failing, _full, _limited, _wrong_path, _failing),
    *(_full, _read_only, _failing, _control, _other_command),
]


def _refused(storage: Storage, setting: Setting, kind: str, out: Path, folder: Path) -> Outcome:
    """Train where nothing can be written; that is to be known before the work."""
    running = storage.start(setting, storage.words(setting, out), folder / "0.log")
    codes, said = running.wait(), running.said()
    found = _wrong_end(codes, said)
    if not found and (set(codes or []) != {EXIT_UNWRITTEN} or "Epoch" in said):
        found = f"not before the work: {codes} {said[-300:]}"
    return Outcome(kind, not found, found)


def _end(storage: Storage, setting: Setting, kind: str, out: Path, running: Running) -> Outcome:
    """Look at how a training has ended, at its files, and at its end once the storage works again."""
    codes, said = running.wait(120), running.said()
    if codes is not None and not any(codes):
        found = storage.difference(setting, out)
        return Outcome(f"control: nothing needs it: {kind}", not found, found)
    found = _wrong_end(codes, said) or _damaged(out) or storage.resume(setting, out, out.parent / "end.log")
    if not found and (still := temporary_files(out)):
        found = f"temporary files are left: {still}"
    return Outcome(kind, not found, found or _errors(said)[0])


def _wrong_end(codes: list[int] | None, said: str) -> str:
    """Return what is wrong with codes and messages; the first process says what it is, the others at least an end."""
    if codes is None:
        return f"goes on: {said[-300:]}"
    errors = _errors(said)
    one_line = 1 <= len(errors) <= len(codes) and errors[0].endswith("expected a path that can be written")
    if (
        codes[0] == EXIT_UNWRITTEN
        and set(codes) <= {EXIT_UNWRITTEN, EXIT_FAILED}
        and one_line
        and "Traceback" not in said
    ):
        return ""
    return f"ended with {codes}: {said[-400:]}"


def _errors(said: str) -> list[str]:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return sorted(lines, key=lambda line: "another process" in line)


def _damaged(out: Path) -> str:
    for path in [*out.glob("*.pth"), *out.glob("*.safetensors")] if out.is_dir() else []:
        try:
            read_file(str(path))
        except DataError as error:
            return f"not whole: {error}"
    return ""


CAMPAIGN = Campaign(
    name="storage",
    title="Disks that are full or fail, folders and paths that cannot be written",
    promise="one line and exit code 4, before the work where it can be known; what was there is whole, and the "
    "training can be resumed to the end of an undisturbed one.",
    size=80,
    quick=_QUICK,
    seconds=500,
    prepare=Storage,
    run=run,
)
