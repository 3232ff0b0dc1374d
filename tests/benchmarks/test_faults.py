"""The campaigns of faults, a few cases of each; and that a case which dies or hangs is noted as such."""

import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmarks.faults.__main__ import main
from benchmarks.faults.campaign import NAMES, Campaign, Outcome, campaign
from benchmarks.faults.cases import outcomes_in, run_cases
from benchmarks.faults.page import END, START, write_page


def _case(prepared: Path, index: int, random: Random, folder: Path) -> Outcome:
    assert not [*folder.iterdir()]
    if index == 1:
        os._exit(3)
    if index == 2:
        time.sleep(60)
    if index == 3:
        raise ValueError("of the case")
    return Outcome("number", index != 4, str(random.random()))


SMALL = Campaign("small", "Small", "nothing.", 6, 6, 1.0, lambda folder: folder, _case)


def test_each_outcome_is_noted_whatever_a_case_does(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    noted = [*run_cases(SMALL, 7, range(6), path)]
    assert [each.kind for each in noted] == ["number", "crash", "hang", "the case itself failed", "number", "number"]
    assert [each.held for each in noted] == [True, False, False, False, False, True]
    assert noted[1].note == "process ended: exit code 3"
    assert [*outcomes_in(path).values()] == noted


def test_what_is_done_is_kept_and_comes_out_the_same(tmp_path: Path) -> None:
    path, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first = [*run_cases(SMALL, 7, [0, 5], path)]
    path.write_text(path.read_text() + '{"index": 4')  # a line that was not finished
    assert not [*run_cases(SMALL, 7, [0, 5], path)]
    assert [each.note for each in run_cases(SMALL, 7, [5, 0], again)] == [first[1].note, first[0].note]
    assert [each.note for each in run_cases(SMALL, 8, [0], path)] != [first[0].note]


def test_a_campaign_that_cannot_be_prepared_is_an_error(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        raise ValueError("nothing to share")

    with pytest.raises(RuntimeError, match="campaign small cannot be prepared"):
        [*run_cases(replace(SMALL, prepare=prepare), 0, [0], tmp_path / "x.jsonl")]


@pytest.mark.parametrize("name", NAMES)
def test_promises_hold_in_a_few_cases(name: str, tmp_path: Path) -> None:
    assert main([name, "--quick", "--output", str(tmp_path)]) == 0
    tried = campaign(name)
    assert len(outcomes_in(tmp_path / f"{name}.jsonl")) == tried.quick
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{START}\nold\n{END}\nAfter.\n")
    write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith(f"Before.\n{START}\n\n| campaign ")
    row = next(line for line in text.splitlines() if line.startswith(f"| [{name}](#"))
    assert [*map(str.strip, row.split("|"))][2:4] == [f"{tried.quick} of {tried.size:,}", str(tried.quick)]
    assert f"\n\n### {tried.title}\n\nPromised: {tried.promise}\n" in text
    assert f"\npython -m benchmarks.faults {name} --seed 0\n" in text
    assert text.endswith(f"{END}\nAfter.\n")
