"""Files are complete or absent, records are checked, and tables are readable."""

import errno
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start
from safetensors.torch import save_file

from norton_det.errors import DataError, UsageError, expect, expect_choice
from norton_det.files import (
    check_name,
    new_folder,
    read_json,
    remove_abandoned,
    write_atomically,
    write_json,
    write_text,
)
from norton_det.formatting import format_count, parse_count, table
from norton_det.json_text import make_record
from norton_det.runtime.run_folder import in_use
from norton_det.storage import check_space


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(name: str) -> None:
        Path(name).write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITERS = {
    "torch": lambda name: torch.save({"x": torch.ones(100_000)}, name),
    "safetensors": lambda name: save_file({"x": torch.ones(100_000)}, name),
    "python": lambda name: Path(name).write_bytes(bytes(400_000)),
}


@pytest.mark.parametrize("writer", [*WRITERS])
def test_storage_that_is_full_is_the_systems_error_whoever_writes(writer: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="not on Windows")
    path = tmp_path / "file.pt"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_atomically(path, WRITERS[writer])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_room_and_names_are_looked_at_before_the_work(tmp_path: Path) -> None:
    check_space(tmp_path, 1, "a checkpoint")
    with pytest.raises(OSError, match=r"a checkpoint has at least 1,000,000,000,000,000,000 bytes, [\d,]+ are free"):
        check_space(tmp_path, 10**18, "a checkpoint")
    check_name(tmp_path / "x.json")
    with pytest.raises(IsADirectoryError):
        check_name(tmp_path)
    with pytest.raises(OSError, match="File name too long") as raised:
        check_name(tmp_path / f"{'x' * 240}.json")
    assert raised.value.filename == str(tmp_path / f"{'x' * 240}.json")


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from norton_det.files import new_folder, write_atomically
from norton_det.runtime.run_folder import in_use

def wait(name):
    Path(name).write_text("half")
    if kind == "file":
        Path(name).with_name(".tmp12345678").touch()  # as safetensors does
    print("ready", file=sys.stderr, flush=True)
    time.sleep(100)

kind, folder = sys.argv[1:]
if kind == "file":
    write_atomically(f"{folder}/x", wait)
elif kind == "folder":
    with new_folder(f"{folder}/x") as made:
        wait(made / "y")
else:
    with in_use(folder):
        wait(f"{folder}/log")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(kind: str, tmp_path: Path) -> None:
    mine = tmp_path / ".x.own"
    mine.touch()
    with start("-c", HALF_WRITTEN, kind, tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        (temporary,) = set(tmp_path.iterdir()) - {mine}
        remove_abandoned(tmp_path)
        assert temporary.exists(), "it is in use"
        process.kill()
    if kind == "file":
        remove_abandoned(tmp_path)
        assert set(tmp_path.iterdir()) == {mine}
    else:
        with new_folder(tmp_path / "y" / "z"):
            assert temporary.exists(), "another folder"
        with new_folder(tmp_path / "z"):
            pass
    assert not temporary.exists()
    assert mine.exists()


def test_no_file_that_is_written_is_swept_by_another_thread(tmp_path: Path) -> None:
    end = time.monotonic() + 0.5

    def sweep() -> None:
        while time.monotonic() < end:
            remove_abandoned(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    while time.monotonic() < end:
        write_text(tmp_path / "x", "whole")
    sweeper.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_nobody_here_made_is_left(kind: str, tmp_path: Path) -> None:
    strange = tmp_path / ".x.norton_det-abc"
    os.mkfifo(strange) if kind == "fifo" else strange.symlink_to(tmp_path)
    write_text(tmp_path / "y", "whole")
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {strange.name, "y"}


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="not on Windows")

    def none(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    half = tmp_path / ".x.norton_det-abcdefgh"
    half.mkdir()
    write_text(tmp_path / "x", "whole")
    remove_abandoned(tmp_path)
    assert half.exists()
    assert {path.name for path in tmp_path.iterdir()} == {half.name, "x"}


def test_a_lock_is_no_link_and_no_pipe(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (tmp_path / ".lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"), in_use(tmp_path):
        pass
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match="is no regular file"), in_use(tmp_path):
        pass
    assert other.read_text() == "of somebody else"


def test_a_folder_in_use_tells_by_whom_until_that_process_ends(tmp_path: Path) -> None:
    with start("-c", HALF_WRITTEN, "lock", tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        with in_use(tmp_path) as holder:
            assert holder is not None
            assert holder.startswith(f"process {process.pid} on ")
        process.kill()
    assert (tmp_path / ".lock").exists(), "nobody removed it"
    with in_use(tmp_path) as holder:
        assert holder is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace = os.fsync, os.replace
    events: list[tuple[str, int | str, int]] = []

    def synced(handle: int) -> None:
        status = os.fstat(handle)
        events.append(("sync", status.st_ino, status.st_size))
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        events.append(("rename", str(target), source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    path = tmp_path / "x"
    if kind == "file":
        write_text(path, "content")
    else:
        with new_folder(path) as folder:
            (folder / "y").write_text("content")
    first, second, third = events
    assert first[:2] == ("sync", path.stat().st_ino)
    assert kind == "folder" or first[2] == len("content"), "complete when it is synced"
    assert second == ("rename", str(path), path.stat().st_ino)
    assert third[:2] == ("sync", tmp_path.stat().st_ino)


def test_a_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.json: folder .*none does not exist"):
        write_json(tmp_path / "none" / "x.json", {})


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "größer\n")
    assert (tmp_path / "x.txt").read_bytes() == "größer\n".encode()
    content = {"a": [1, None, "ä"]}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json", dict, "a test") == content
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == (tmp_path / "x.txt").stat().st_mode & 0o777 != 0o600


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read: .*; expected rows"), ("{}", "holds a dict")])
def test_wrong_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json: {message}"):
        read_json(tmp_path / "x.json", list, "rows")
    with pytest.raises(DataError, match=r"none\.json: no such file; expected rows"):
        read_json(tmp_path / "none.json", list, "rows")


def test_a_new_folder_is_complete_or_absent(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "new") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "deep" / "new").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "file").read_text() == "x"

    def interrupted() -> None:
        with new_folder(tmp_path / "other") as folder:
            (folder / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("x")
    for used in ("empty", "deep", "deep/new/file"):
        with pytest.raises(UsageError, match="exists already"), new_folder(tmp_path / used):
            pytest.fail("entered")


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        expect(isinstance(self.x, int), "x", self.x, "an integer")


def test_records_have_the_fields_of_their_class() -> None:
    assert make_record(Point, {"x": 1, "tags": ["a"]}, "row 1") == Point(1, 0, ["a"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "row 3 is a list; expected an object"),
        ({"x": 1, "z": 2}, "row 3 has unknown fields z; expected x, y, tags"),
        ({"y": 1}, "row 3 lacks x"),
        ({"x": "1"}, "row 3: x is '1'; expected an integer"),
    ],
)
def test_wrong_records_are_named(values: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        make_record(Point, values, "row 3")
    assert str(caught.value) == message


def test_unknown_names_are_listed_with_the_choices() -> None:
    expect_choice("split", "val", ("train", "val"))
    with pytest.raises(UsageError, match="unknown split 'dev'; expected one of: train, val"):
        expect_choice("split", "dev", ("train", "val"))


def test_tables_have_aligned_columns() -> None:
    rows = [("conv1", "1.2G", 12), ("a longer name", "", 3)]
    lines = table(("layer", "MACs", "n"), rows).splitlines()
    assert len(lines) == 4
    assert lines[0].index("layer") == lines[2].index("conv1") == lines[3].index("a longer name") == 0
    assert len({len(line) for line in lines}) == 1, "numbers end in the same column"
    assert lines[2].endswith("12")
    assert table(("layer", "MACs"), []).splitlines()[0].split() == ["layer", "MACs"]
    assert not any(line != line.rstrip() for line in table(("a", "remarks"), [("1", "")]).splitlines())


def test_cells_are_printed_as_given() -> None:
    cells = ["1e3", "007", "1.50", "None", "-0.00 %"]
    assert table(("x", *"abcd"), [cells]).splitlines()[-1].split("  ")[0] == "1e3"
    markdown = table(("x", *"abcd"), [cells], "markdown").splitlines()
    assert [cell.strip() for cell in markdown[2].strip("|").split("|")] == cells
    assert set(markdown[1]) == {"|", "-"}


@pytest.mark.parametrize("count", [120, 10_000, 126_490_000, 920_000_000, 4_090_000_000])
def test_counts_with_a_unit_are_read_back(count: int) -> None:
    if count >= 1000:
        assert parse_count(format_count(count)) == count
    else:
        assert format_count(count) == str(count)


@pytest.mark.parametrize("text", ["", "M", "12", "1.2.3M", "12x", "-1M", "1e3M"])
def test_malformed_counts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number with a unit"):
        parse_count(text)


def test_json_is_written_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [1, 2])
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == [1, 2]
    assert text.endswith("\n")
    assert len(text.splitlines()) == 4


def test_tables_show_no_control_codes_and_markdown_no_markup() -> None:
    rows = [("<b>|\x1b[31m\n", 1)]
    assert table(("a", "b"), rows).splitlines()[-1].split() == ["<b>|\\x1b[31m\\n", "1"]
    assert table(("a", "b"), rows, "markdown").splitlines()[-1] == "| &lt;b&gt;\\|\\x1b[31m\\n | 1   |"
