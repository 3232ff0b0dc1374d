"""The table of measured times: what is damaged is measured anew, and said."""

import json
from pathlib import Path
from typing import Any

import pytest

from norton_det.deployment.record import MEMORY_FORMATS
from norton_det.search.latency_table import LatencyTable

FORMAT, *_ = MEMORY_FORMATS
GOOD = dict.fromkeys(MEMORY_FORMATS, 1.5)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 10**5,
        "[]",
        "{}",
        '{"times": [1]}',
        '{"times": null}',
        '{"times": {"a": []}}',
        '{"times": {"a": {}}}',
        *(json.dumps({"times": {"a": {**GOOD, FORMAT: value}}}) for value in (-1, 0, "1", None, 1e300, True)),
        json.dumps({"times": {"a": {**GOOD, FORMAT: float("nan")}}}),
    ],
)
def test_a_damaged_table_is_measured_anew(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LatencyTable(tmp_path).path.write_text(content)
    assert LatencyTable(tmp_path).times == {}
    assert caplog.messages[-1].endswith("; the times are measured anew")


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    table = LatencyTable(tmp_path / "new")
    table.times["a"] = GOOD
    table.save()
    assert LatencyTable(tmp_path / "new").times == {"a": GOOD}


def test_times_that_cannot_be_kept_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    table: Any = LatencyTable(tmp_path / "file" / "below")
    table.times["a"] = GOOD
    table.save()
    assert caplog.messages[-1].endswith("the times that were measured are not kept")
