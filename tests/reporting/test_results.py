"""Published and measured rows."""

import json
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused

import norton_det as nd
from norton_det.config import read_config
from norton_det.errors import UsageError
from norton_det.reporting.measured import read_measured
from norton_det.reporting.published import DENSE, METRICS, PublishedRow

CONFIGS = Path(__file__).parents[2] / "configs"
TABLES = [f"Pham et al. 2023 table {i}" for i in range(1, 6)]
REVISION = "Pham et al. later revision table 2"
MEASURED = {
    "network": "resnet56_cifar",
    "dataset": "cifar10",
    "label": DENSE,
    "macs_published": 125_000_000,
    "params": 850_000,
    "command": "tools/train.py",
    "top1": 89.1,
}


def reduction(row: PublishedRow, cost: str) -> float:
    (dense,) = nd.published(row.network, method=DENSE)
    return 100 * (1 - getattr(row, cost) / getattr(dense, cost))


def test_every_row_of_every_table() -> None:
    counts = Counter(row.source for row in nd.published())
    assert counts == dict(zip(TABLES, (31, 30, 11, 49, 9), strict=True)) | {REVISION: 1}


@pytest.mark.parametrize(
    ("table", "metrics", "millions", "reductions"),
    [
        # Sums over all cells of a printed table: a digit that was copied wrongly shows up here.
        (1, 2889.03, 2988.77, 4513),
        (2, 2792.12, 2337.43, 2767),
        (3, 1038.31, 1881.41, 893),
        (4, 7793.93, 95154.90, 4145),
        (5, 28.76, 1027193.69, 340),
    ],
)
def test_sums_of_a_table(table: int, metrics: float, millions: float, reductions: float) -> None:
    rows = [row for row in nd.published() if row.source == TABLES[table - 1]]

    def total(*names: str) -> float:
        return sum(getattr(row, name) or 0 for row in rows for name in names)

    assert total(*METRICS) == pytest.approx(metrics, abs=1e-6)
    assert total("macs", "params") == pytest.approx(millions * 1e6, abs=1)
    assert total("macs_reduction", "params_reduction") == reductions


def test_single_rows() -> None:
    found = nd.published("resnet50", "imagenet", "Kim et al.")
    assert [(r.top1, r.top5, r.macs, r.macs_printed, r.params, r.params_reduction) for r in found] == [
        (75.34, 92.68, None, "", 17_600_000, 31)
    ]
    small = nd.published("keypointrcnn_cpresnet50_fpn", method="NORTON")[-1]
    assert (small.AP, small.AR75, small.AR100, small.macs, small.params) == (
        0.63,
        0.75,
        None,
        95_970_000_000,
        39_390_000,
    )
    (later,) = (row for row in nd.published() if row.source == REVISION)
    assert (later.network, later.method, later.top1, later.macs, later.params) == (
        *("resnet56_cifar", "NORTON"),
        *(93.81, 37_520_000, 210_000),
    )


def test_reductions_agree_with_the_counts_but_for_the_rows_that_are_named() -> None:
    named = {
        ("vgg16_bn_cifar", "DECORE-100", "macs"),
        ("vgg16_bn_cifar", "ALDS", "macs"),
        ("vgg16_bn_cifar", "ALDS", "params"),
        ("vgg16_bn_cifar", "HRank-3", "params"),
        ("densenet40_cifar", "NORTON", "macs"),
    }
    found = set()
    for row in nd.published():
        for cost in ("macs", "params"):
            printed = getattr(row, f"{cost}_reduction")
            if printed is not None and abs(reduction(row, cost) - printed) > 1.5:
                found.add((row.network, row.method, cost))
    assert found == named


def test_each_network_has_one_baseline_and_its_own_metrics() -> None:
    for network in dict.fromkeys(row.network for row in nd.published()):
        rows = nd.published(network)
        assert [row.method for row in rows].index(DENSE) == 0
        assert len({row.dataset for row in rows}) == len(nd.published(network, method=DENSE)) == 1
        first = "AP" if network.endswith("_fpn") else "top1"
        assert all(getattr(row, first) is not None for row in rows)


def test_the_configs_state_the_published_rows() -> None:
    stated, printed = [], []
    for file in CONFIGS.glob("*/*.yaml"):
        config = read_config(file)
        assert bool(config.published) != bool(config.ours), file
        if config.published:
            stated.append({"network": config.arch, **config.published})
    for row in nd.published(method="NORTON"):
        metrics = {name: getattr(row, name) for name in METRICS if getattr(row, name) is not None}
        printed.append({"network": row.network, **metrics, "macs": row.macs_printed, "params": row.params_printed})
    order = itemgetter("network", "macs", "params")
    assert sorted(stated, key=order) == sorted(printed, key=order)


def test_names() -> None:
    assert nd.published("vgg16_bn") == nd.published("vgg16_bn_cifar") != []
    assert nd.published("resnet50", "coco") == []
    with pytest.raises(UsageError, match="unknown network 'vgg'; expected one of: vgg16_bn_cifar, resnet56_cifar, "):
        nd.published("vgg")
    with pytest.raises(UsageError, match="unknown dataset 'voc'; expected one of: cifar10, imagenet, coco"):
        nd.published(dataset="voc")
    with pytest.raises(UsageError, match="unknown method 'norton'; expected one of: dense, HRank-1, "):
        nd.published(method="norton")


def test_measured(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    small = MEASURED | {
        "label": "rank 1",
        "top1": 88,
        "minutes": 3.5,
        "epochs": 2,
        "source_weights": "x.pt",
        "note": "n",
    }
    file.write_text(json.dumps([MEASURED, small]))
    dense, row = read_measured(file)
    assert (dense.top1, dense.minutes, dense.note) == (89.1, None, "")
    assert (row.label, row.top1, row.macs, row.minutes) == ("rank 1", 88, 125_000_000, 3.5)
    for empty in ("", "\n", "[]"):
        file.write_text(empty)
        assert read_measured(file) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "resnet56"}, "row 2: network is 'resnet56'; expected one of: vgg16_bn_cifar, "),
        ({"dataset": ""}, "row 2: dataset is ''; expected a string that is not empty"),
        ({"label": 1}, "row 2: label is 1; expected a string that is not empty"),
        ({"macs_published": "37M"}, "row 2: macs_published is '37M'; expected a positive integer"),
        ({"params": 0}, "row 2: params is 0; expected a positive integer"),
        ({"params": True}, "row 2: params is True"),
        ({"top1": 101}, "row 2: top1 is 101; expected a number from 0 to 100"),
        ({"top1": float("nan")}, "row 2: top1 is nan"),
        ({"top1": None}, "row 2: neither top1 nor AP is given"),
        ({"AP": 37}, "row 2: AP is 37; expected a number from 0 to 1"),
        ({"minutes": -1}, "row 2: minutes is -1"),
        ({"epochs": "3"}, "row 2: epochs is '3'"),
        ({"source_weights": 5}, "row 2: source_weights is 5"),
        ({"note": None}, "row 2: note is None"),
        ({"macs": 1}, "row 2 has unknown fields macs; expected network, dataset, "),
        ({}, "2 rows of resnet56_cifar on cifar10 have the label 'dense'; expected one"),
        ({"dataset": "other", "label": "rank 1"}, "0 rows of resnet56_cifar on other have the label 'dense'"),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], message: str, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps([MEASURED, MEASURED | change]))
    refused(lambda: read_measured(file), 3, f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: Expecting property name"),
        ("{}", "holds a dict; expected a JSON list"),
        ("[[]]", "row 1 is a list; expected an object"),
        ('[{"network": "resnet50"}]', "row 1 lacks dataset, label, macs_published, params, command"),
    ],
)
def test_files_that_are_no_rows(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "measured.json"
    file.write_text(text)
    refused(lambda: read_measured(file), 3, f"{file}: {message}")


def test_a_file_of_rows_that_is_missing(tmp_path: Path, refused: Refused) -> None:
    refused(lambda: read_measured(tmp_path / "none.json"), 3, "none.json: no such file; expected a JSON list")
