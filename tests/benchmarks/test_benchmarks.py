"""Benchmarks: what is compared, and how; not how fast it is."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, TOOLS, Refused, tool
from torchvision.models import get_model

from benchmarks import BENCHMARKS, CASES, Row, Settings, compare_sides, memory
from benchmarks.compare import Case, Side
from benchmarks.detector import watched
from benchmarks.growth import growth_figure
from benchmarks.kinds import KINDS, REST
from benchmarks.memory import peak_memory
from norton_det.cost.fixed_work import DETECTIONS
from norton_det.models.rcnn_counted import PROPOSALS

Run = Callable[..., list[dict]]
GROWN = list(BENCHMARKS["growth"](Settings(Path())))


def only_numbers(arguments: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in arguments.items() if type(value) is int}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def rows(*words: str) -> list[dict]:
        assert tool("benchmark").main([*words, "--repeats", "1", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return rows


def test_similarity(run: Run) -> None:
    (row,) = run("similarity", "--ranks", "2", "--no-memory")
    assert {"name", "ours", "other", "ratio", "ours_memory", "machine"} <= row.keys()
    assert "survivors the same" in row["detail"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell")
@pytest.mark.parametrize("megabytes", [40, 400])
def test_memory_is_what_the_run_takes_beyond_what_was_there(megabytes: int) -> None:
    there = torch.ones(100 * 250_000)
    taken = peak_memory(lambda: torch.ones(megabytes * 250_000).sum())
    assert taken == pytest.approx(megabytes, abs=15)
    assert there[-1] == 1


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert peak_memory(lambda: pytest.fail("run")) is None


def test_backbone(run: Run) -> None:
    rows = run("backbone", "--sizes", "32", "--batch-sizes", "1", "--no-memory")
    assert [row["name"].split(";")[0] for row in rows] == ["backbone 0.92G"] * 2 + ["backbone of rank 4, unpruned"]
    assert all(row["name"].endswith(", 1 x 32x32") for row in rows)
    assert rows[0]["detail"].count("G MACs a second") == 2
    assert all(list(row["parts"]) == [*KINDS, REST] for row in rows)
    assert all(min(times) > 0 for row in rows for times in row["parts"].values())
    assert rows[0]["ours_memory"] is None


@pytest.mark.slow
def test_train_step(run: Run, tmp_path: Path) -> None:
    words = ["--train-batch", "2", "--only", "resnet56_14m", "--no-memory", "--output", str(tmp_path / "rows.json")]
    (row,) = run("train-step", *words)
    assert row["name"].startswith("train-step resnet56_14m, batch 2 (9.")
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]
    ranks = ["--ranks", "1", "--no-memory", "--output", str(tmp_path / "rows.json")]
    assert run("similarity", *ranks)
    *kept, last = json.loads((tmp_path / "rows.json").read_text())
    assert kept == [row]
    assert last["name"] == "similarity of 512 filters, rank 1"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("benchmark").main(["similarity", "--ranks", "1", "--repeats", "1", "--no-memory"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("machine: ")
    assert "similarity of 512 filters, rank 1" in shown


def test_the_published_classifiers_and_the_three_detectors_are_among_the_cases() -> None:
    settings = Settings(TOOLS.parent / "configs")
    names = {Path(arguments["config"]).name for _, arguments in BENCHMARKS["train-step"](settings)}
    assert names == {path.name for folder in ("cifar10", "imagenet") for path in settings.configs.glob(f"{folder}/*")}
    assert [arguments["kind"] for _, arguments in BENCHMARKS["detector"](settings)] == ["faster", "mask", "keypoint"]


def test_ratio_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sides = {name: Side(lambda name=name: order.append(name), parts={"part": [0.5]}) for name in ("ours", "other")}
    case = Case("nothing", lambda: sides["ours"], lambda: sides["other"], scale=10)
    monkeypatch.setitem(CASES._items, "nothing", lambda **arguments: case)
    row = compare_sides("none", "nothing", {"size": 3, "config": "x"}, Settings(Path(), memory=False, repeats=2))
    assert order == ["ours", "other"] * 3
    assert row.parts == {"part": [0.5, 0.5]}
    assert row.other > 0
    assert row.numbers == {"size": 3}


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint"])
def test_a_watched_detector_has_fixed_work(kind: str) -> None:
    counts: list[int] = []
    net = get_model(f"{kind}rcnn_cpresnet50_fpn", weights=None, weights_backbone=None, num_classes=3, **TINY).eval()
    net, parts = watched(net)
    net.roi_heads.box_head.register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    with torch.no_grad():
        (found,) = net([torch.rand(3, 64, 64)])
        net([torch.rand(3, 64, 64)])
    assert counts == [PROPOSALS] * 2
    assert len(found["boxes"]) == DETECTIONS
    assert list(parts) == ["backbone", "FPN", "RPN", "post-processing", "RoI heads"]
    assert all(len(seconds) == 2 for seconds in parts.values())


def row(benchmark: str, case: str, **numbers: float) -> Row:
    return Row(benchmark, case, numbers, f"{case} {numbers}", 0.5, 2, 4, 0.1, 0.2, 100, None, machine="M")


def test_the_page_has_tables_and_a_picture(tmp_path: Path) -> None:
    cases = [row("growth", case, **only_numbers(arguments)) for case, arguments in GROWN]
    parts = replace(row("detector", "detector"), parts={"RPN": [1.0, 3.0]})
    rows = [row("similarity", "similarity", rank=4), parts, *cases]
    (tmp_path / "rows.json").write_text(json.dumps([asdict(one) for one in rows]))
    words = ["--rows", str(tmp_path / "rows.json"), "--output", str(tmp_path / "speed.md")]
    assert tool("speed").main(words) == 0
    page = " ".join((tmp_path / "speed.md").read_text().split())  # without the padding of the tables
    assert "| similarity {'rank': 4} | 0.5 | 2 | 4.00 | 10% / 20% | 100 | | |" in page
    assert "| RPN | 1.000 | 3.000 | 3.00 |" in page
    assert "![Seconds against each number that varies](speed_growth.svg)" in page
    assert "rank 4" in (tmp_path / "speed_growth.svg").read_text()


def test_the_page_without_rows_and_with_damaged_ones(tmp_path: Path, refused: Refused) -> None:
    words = ["--rows", str(tmp_path / "rows.json"), "--output", str(tmp_path / "speed.md")]
    assert tool("speed").main(words) == 0
    assert "Nothing has been measured yet" in (tmp_path / "speed.md").read_text()
    (tmp_path / "rows.json").write_text('[{"name": 1}]')
    refused(lambda: tool("speed").main(words), 3, "rows.json: row 1 lacks benchmark, case")


def test_growth_has_a_point_for_each_value() -> None:
    figure = growth_figure([row("growth", case, **only_numbers(arguments)) for case, arguments in GROWN])
    lengths = [len(axes.lines[0].get_xdata()) for axes in figure.axes[:5]]
    assert lengths == [4, 4, 5, 4, 4]
