"""The command norton-det: its sub-commands, their help, the shims in tools/."""

import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, TOOLS, Refused, fill

import norton_det
from norton_det.cli.common import command
from norton_det.cli.main import COMMANDS, main
from norton_det.decompositions import DECOMPOSITIONS, IMPLEMENTATIONS
from norton_det.errors import DataError
from norton_det.models import ARCHITECTURES
from norton_det.pruning import CRITERIA

OUTSIDE = {"benchmark", "results", "speed"}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_every_command_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: norton-det ")
    for name in COMMANDS:
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert len(line.split()) > 5
    assert max(map(len, lines)) <= 120


def test_every_module_with_a_run_is_a_command() -> None:
    folder = Path(norton_det.__file__).parent / "cli"
    modules = {path.stem for path in folder.glob("*.py") if "\ndef run(args" in path.read_text()}
    assert modules == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(name, capsys).startswith(f"usage: norton-det {name} ")


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("compress", [*ARCHITECTURES, *CRITERIA, *DECOMPOSITIONS]),
        ("search", [*ARCHITECTURES, *CRITERIA, *DECOMPOSITIONS]),
        ("train-det", [*CRITERIA, *DECOMPOSITIONS, *IMPLEMENTATIONS, "auto"]),
        ("train-cls", [*IMPLEMENTATIONS, "auto"]),
        ("eval-cls", [*IMPLEMENTATIONS]),
    ],
)
def test_help_shows_what_is_registered(name: str, choices: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = help_of(name, capsys).replace(",", " ").split()
    assert set(choices) <= set(words)


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-cls", "train-det"):
        text = help_of(name, capsys)
        for group in ("config:", "model:", "data:", "optimiser:", "learning rate:", "teacher:", "output:"):
            assert f" {group} -" in text, group


@pytest.mark.parametrize(("words", "problem"), [(["distill"], "unknown command 'distill'"), ([], "no command")])
def test_an_unknown_command_is_refused(words: list[str], problem: str, refused: Refused) -> None:
    refused(lambda: main(words), 2, f"error: {problem}; expected one of: {', '.join(COMMANDS)}")


@pytest.mark.parametrize(
    "words", [["make-shapes", "--output", "FILE/x", "--train", "1", "--val", "1"], ["demo", "--output", "FILE/x"]]
)
def test_an_output_below_a_file_is_refused(words: list[str], tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    refused(lambda: main(fill(words, {"FILE": file})), 4, f"error: {file}", "; expected a path that can be written")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is looked at before: none of the other paths exists."""
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "x")
    words = ["eval-det", "--checkpoint", "none.pth", "--data-path", "nowhere"]
    refused(
        lambda: main([*words, "--output-dir", below]), 4, f"error: {below}", "; expected a path that can be written"
    )

    def full(*args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("norton_det.files.tempfile.TemporaryFile", full)
    for flag in ("--output-dir", "--output"):
        path = tmp_path if flag == "--output-dir" else tmp_path / "metrics.json"
        refused(lambda f=flag, p=path: main([*words, f, str(p)]), 4, f"error: {tmp_path}: No space left on device")


def test_other_errors_of_the_system_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise InterruptedError(errno.EINTR, "Interrupted")

    monkeypatch.setattr("norton_det.cli.complexity.run", fail)
    with pytest.raises(InterruptedError):
        main(["complexity", "x"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"norton-det {norton_det.__version__}\n"


def test_the_package_can_be_run() -> None:
    done = run("-m", "norton_det", "complexity", "none.pth")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: none.pth: no such file")


def test_shims_are_short_and_complete() -> None:
    shims = {path.stem: path.read_text() for path in TOOLS.glob("*.py")}
    assert shims.keys() - OUTSIDE == {name.replace("-", "_") for name in COMMANDS} - OUTSIDE
    assert max(len(text.splitlines()) for text in shims.values()) <= 5
    for name in shims.keys() - OUTSIDE:
        assert f'main_of("{name.replace("_", "-")}")' in shims[name]


@pytest.mark.parametrize("name", ["make_shapes", "benchmark", "results"])
def test_a_shim_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / f"{name}.py"), "--help"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_importing_a_shim_runs_nothing() -> None:
    """A process that is spawned imports the main module once more."""
    code = "import runpy, sys; [runpy.run_path(path, run_name='__mp_main__') for path in sys.argv[1:]]"
    done = run("-c", code, *sorted(TOOLS.glob("*.py")))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_signals_end_a_command_with_their_exit_codes(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["norton-det"])
    monkeypatch.setattr(gc, "freeze", lambda: None)
    before = signal.getsignal(number)
    assert command(lambda argv: os.kill(os.getpid(), number))() == code
    assert capsys.readouterr().err == f"terminated: {number.name} received\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ELOOP])
def test_storage_that_fails_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: Sequence[str]) -> None:
        raise OSError(number, os.strerror(number), "out/x.pth")

    assert command(fail)([]) == 4
    expected = f"error: out/x.pth: {os.strerror(number)}; expected a path that can be written\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("of 512 GB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 512 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 GB"),
    ],
)
def test_a_lack_of_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: Sequence[str]) -> None:
        raise error

    assert command(fail)([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory: ")
    with pytest.raises(RuntimeError, match="of another kind"):
        command(lambda argv: (_ for _ in ()).throw(RuntimeError("of another kind")))([])


@pytest.mark.parametrize("flushed", [True, False])
def test_output_that_nobody_reads_is_no_traceback(flushed: bool) -> None:
    flush = "flush=True" if flushed else ""
    script = "import sys; from norton_det.cli.common import command; "
    script += f"sys.exit(command(lambda argv: print('x' * 10**6 if {flushed} else 'x', {flush}))())"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        buffered = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
        options = {"env": buffered, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-c", script], stdout=output, check=False, **options)
    assert (done.returncode, done.stderr) == (141 if flushed else 0, "")


def test_names_of_any_kind_come_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\n\x1b[31mb\udcff" + "c" * 5000

    def fail(argv: Sequence[str]) -> None:
        raise DataError(f"{name}: is damaged")

    assert command(fail)([]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a\\n\\x1b[31mb\\udcff")
    assert main(["complexity", name]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
