"""A signal to one process of a training reaches the others, also one that computes while the others wait for it."""

import signal
import time
from pathlib import Path

import pytest

from benchmarks.faults.trainings import GONE, Setting, Trainings
from norton_det.evaluation.coco import CocoEvaluator, Metrics

TWO = Setting("det", 2, epochs=1)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("whom", [0, 1])
def test_a_signal_to_one_process_ends_the_computing_of_metrics(
    sent: signal.Signals, code: int, whom: int, trainings: Trainings, tmp_path: Path
) -> None:
    begun, out = tmp_path / "begun", tmp_path / "out"

    def slowly(self: CocoEvaluator, results: object) -> Metrics:
        begun.touch()
        for _ in range(int(20 * GONE)):
            time.sleep(0.1)
        return {}

    def before(rank: int) -> None:
        CocoEvaluator.evaluate = slowly  # type: ignore[method-assign]

    running = trainings.start(TWO, trainings.words(TWO, out), tmp_path / "log", before)
    end = time.monotonic() + 120
    while not begun.exists():
        assert time.monotonic() < end, f"no evaluation: {running.said()}"
        time.sleep(0.1)
    running.signal(sent, [whom])
    assert running.wait() == [code, code], running.said()
    assert trainings.resume(TWO, out, tmp_path / "end.log") == ""
