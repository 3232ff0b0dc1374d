"""Log lines of a loop, by a clock of the test's own."""

import pytest

from norton_det.runtime import progress
from norton_det.runtime.progress import Meter, ProgressLog


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    return clock


def test_a_meter_shows_the_median_of_the_last_twenty_and_the_mean_of_all() -> None:
    meter = Meter()
    assert (str(meter), meter.mean) == ("-", 0)
    for value in [100.0] * 5 + [1.0] * 8 + [3.0] * 12:
        meter.update(value)
    assert str(meter) == "3.0000 (21.7600)"


@pytest.mark.parametrize(("start", "lines"), [(0, [0, 3, 6, 7]), (4, [6, 7])])
def test_lines_come_at_their_frequency_and_at_the_end(
    start: int, lines: list[int], now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    log = ProgressLog("Epoch: [2]", print_freq=3)
    log.lr = 0.02
    with caplog.at_level("INFO", "norton_det"):
        for batch in log.follow(list(range(start, 8)), start):
            now[0] += 2
            log.update(loss=batch)
    *shown, total = [record.getMessage() for record in caplog.records]
    assert [line.partition("  eta")[0] for line in shown] == [f"Epoch: [2]  [{i}/8]" for i in lines]
    assert all("lr: 0.020000  loss: " in line for line in shown)
    assert "time: 2.0000 (2.0000)  data: 0.0000 (0.0000)" in shown[0]
    assert f"eta: 0:00:{2 * (7 - lines[0]):02d}" in shown[0]
    assert total == f"Epoch: [2] Total time: 0:00:{2 * (8 - start):02d} (2.0000 s / it)"


def test_loading_is_timed_by_itself(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def batches() -> list[int]:
        for batch in (0, 1):
            now[0] += 3
            yield batch

    with caplog.at_level("INFO", "norton_det"):
        for _ in ProgressLog("Test:", print_freq=1).follow(batches()):
            now[0] += 1
    assert "time: 4.0000 (4.0000)  data: 3.0000 (3.0000)" in caplog.text


def test_the_first_iteration_is_no_measure_of_the_others(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    log = ProgressLog("Epoch: [0]", print_freq=1, later=lambda seconds: 100 * seconds)
    with caplog.at_level("INFO", "norton_det"):
        for batch in log.follow(range(4)):
            now[0] += 1 if batch else 50
    first, second, *_ = [record.getMessage() for record in caplog.records]
    assert "run:" not in first
    assert "eta: 0:00:02  run: 0:01:42" in second
