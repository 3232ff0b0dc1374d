"""The figure of README: what is drawn is what was measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import read_rows
from norton_det.errors import DataError
from scripts.summary_figure import DOCS, PANELS, Pair, main, summarise, summary_figure


def bars(axes: Any) -> list[tuple[float, float]]:
    """Return the place and the length of each bar."""
    return [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in axes.patches]


def test_a_bar_is_a_fraction_of_the_dense_network() -> None:
    summary = {
        "a": {"AP": Pair(0.8, 0.2), "MACs": Pair(4e9, 1e9)},
        "b": {"time of an image": Pair(2, 3), "MACs": Pair(4e9, 3e9), "parameters": Pair(5e6, 1e6)},
    }
    figure = summary_figure(summary)
    ap, time, macs, params = map(bars, figure.axes)
    assert [y for y, _ in macs] == pytest.approx([0, 0, 1, 1])
    assert [length for _, length in macs] == pytest.approx([1, 0.25, 1, 0.75])
    assert ap == [pytest.approx(bar) for bar in [(0, 1), (0, 0.25)]]
    assert time == [pytest.approx(bar) for bar in [(1, 1), (1, 1.5)]]
    assert params == [pytest.approx(bar) for bar in [(1, 1), (1, 0.2)]]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["0.800 → 0.200", "2.00 s → 3.00 s", "4.00G → 1.00G", "4.00G → 3.00G", "5.00M → 1.00M"]
    assert all(axes.get_xlim()[1] >= length for axes in figure.axes for _, length in bars(axes))


def test_the_numbers_are_those_of_the_documents() -> None:
    summary = summarise(read_rows(DOCS / "speed.json"), DOCS / "detectors")
    results, speed = ((DOCS / name).read_text() for name in ("results.md", "speed.md"))
    assert list(summary) == ["ResNet-50", "Faster R-CNN", "Mask R-CNN", "Keypoint R-CNN"]
    for network, quantities in summary.items():
        assert quantities.keys() == PANELS.keys() - ({"AP"} if network == "ResNet-50" else set())
        dense, compressed = quantities["time of an image"]
        assert f"| {compressed:.3g} " in speed
        assert f"| {dense:.3g} " in speed
        for count in quantities["parameters"][network == "ResNet-50" :]:
            assert f"{int(count):,}" in results
        for value in quantities.get("AP", ()):
            assert f"| {value:.3f} |" in results


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    rows = read_rows(DOCS / "speed.json")
    with pytest.raises(DataError, match=r"0 rows of benchmark backbone begin with 'backbone 0\.92G"):
        summarise([row for row in rows if row.benchmark != "backbone"], DOCS / "detectors")
    detectors = shutil.copytree(DOCS / "detectors", tmp_path / "detectors")
    report = json.loads((detectors / "mask.json").read_text())
    (detectors / "mask.json").write_text(json.dumps({**report, "rows": report["rows"][1:]}))
    with pytest.raises(DataError, match=r"mask\.json: has no row dense; expected a report of the demo"):
        summarise(rows, detectors)


def test_the_command_writes_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "summary.svg"
    assert main(["--output", str(file)]) == 0
    assert "<svg" in file.read_text()
    assert f"written: {file}" in capsys.readouterr().out
    assert main(["--output", str(tmp_path / "summary.txt")]) == 2
