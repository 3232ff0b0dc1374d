"""What the lines of metrics.jsonl say, and the file of them after any interruption."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.runtime.run_files import read_lines
from norton_det.training.history import (
    MetricsFile,
    best_of,
    evaluations_since_best,
    is_over,
    kept_epochs,
    summary,
)

scores = st.none() | st.integers(0, 5).map(float)
histories = st.lists(st.booleans().flatmap(lambda evaluated: scores if evaluated else st.just(...)), max_size=8).map(
    lambda values: [{"epoch": i, **({} if v is ... else {"AP": v})} for i, v in enumerate(values)]
)


@given(histories)
def test_files_that_are_removed_epoch_by_epoch_leave_the_last_two_and_the_best(history: list[dict[str, Any]]) -> None:
    files: set[int] = set()
    for end in range(1, len(history) + 1):
        files.add(end - 1)
        files -= kept_epochs(history[: end - 1], "AP") - kept_epochs(history[:end], "AP")
    assert files == kept_epochs(history, "AP")
    assert len(files) <= 3
    assert {len(history) - 1, len(history) - 2} & set(range(len(history))) <= files


@given(histories, st.integers(1, 3))
def test_patience_ends_a_run_at_the_first_epoch_after_as_many_evaluations_without_a_better_one(
    history: list[dict[str, Any]], patience: int
) -> None:
    for end in range(len(history) + 1):
        part = history[:end]
        values = [line["AP"] for line in part if "AP" in line]
        rest = values[-patience:]
        before = [value for value in values[:-patience] if value is not None]
        expected = len(rest) == patience and bool(before) and all(v is None or v <= max(before) for v in rest)
        assert is_over(part, "AP", epoch=end - 1, epochs=99, patience=patience) == expected
        assert not is_over(part, "AP", epoch=end - 1, epochs=99, patience=None)
    assert is_over(history, "AP", epoch=len(history) - 1, epochs=len(history), patience=None)


@given(histories)
def test_the_best_is_the_first_of_the_highest(history: list[dict[str, Any]]) -> None:
    best, values = best_of(history, "AP"), [line["AP"] for line in history if line.get("AP") is not None]
    assert (best is None) == (not values)
    if best is None:
        assert summary(history, "AP") == "no AP"
        assert evaluations_since_best(history, "AP") == 0
    else:
        assert best["AP"] == max(values)
        assert max(values) not in [line.get("AP") for line in history[: best["epoch"]]]
        assert f"{values[-1]:.4f}" in summary(history, "AP").partition(", last ")[2]


STEPS = 4


def lines_until(iteration: int) -> list[dict[str, Any]]:
    """Return the lines of a run with a line for every second of the 4 iterations of an epoch, and for the epoch."""
    lines: list[dict[str, Any]] = []
    for i in range(iteration):
        if i % 2:
            lines.append({"iteration": i, "epoch": i // STEPS, "loss": i / 7})
        if i % STEPS == STEPS - 1:
            lines.append({"epoch": i // STEPS, "AP": i / 9})
    return lines


@settings(deadline=None)
@given(st.integers(0, 13), st.integers(0, 13), st.integers(0, 60), st.booleans())
def test_lines_after_the_checkpoint_are_dropped(done: int, more: int, cut: int, before_its_line: bool) -> None:
    """Whatever was written after the checkpoint, and wherever its last line was cut off."""
    saved = lines_until(done)
    if before_its_line and done and done % STEPS == 0:  # the checkpoint that is written before an evaluation
        saved.pop()
    later = "".join(json.dumps(line) + "\n" for line in lines_until(done + more)[len(saved) :])
    history = [line for line in saved if "iteration" not in line]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in saved) + later[: max(len(later) - cut, 0)])
        file = MetricsFile(folder, SimpleNamespace(iteration=done, history=history))
        assert read_lines(path) == saved
        for line in lines_until(done + more)[len(saved) :]:
            file.add(line)
        assert read_lines(path) == lines_until(done + more)


def test_a_damaged_file_is_set_aside_and_the_epochs_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": "x"}\n')
    state: Any = SimpleNamespace(iteration=3, history=[{"epoch": 0, "top1": 5.0}])
    MetricsFile(tmp_path, state)
    assert read_lines(path) == state.history
    assert (tmp_path / "damaged_metrics.jsonl").read_text() == '{"epoch": "x"}\n'
