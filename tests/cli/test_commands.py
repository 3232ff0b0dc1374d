"""The tools: each main on small generated data, exit codes and messages of bad input."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TOOLS, Refused, fill, tool

import norton_det as nd


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "r50.safetensors"
    rates = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
    assert tool("compress").main(["--arch", "resnet50", "--rank", "1", "--rates", rates, "--output", str(path)]) == 0
    return path


def test_compress_and_complexity(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("complexity").main([str(compressed), str(compressed), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert (rows[0]["params"], rows[0]["macs"]) == (5_885_736, 899_619_808)
    assert rows[0]["macs_published"] > rows[0]["macs"]
    assert tool("complexity").main([str(compressed)]) == 0
    assert "layer4.2.conv2" in capsys.readouterr().out


def test_compress_prints_layers_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.safetensors"
    assert tool("compress").main(["--arch", "resnet56_cifar", "--rank", "1", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "layer3.8.conv2" in shown
    assert "rank 1" in shown
    assert "853,018" in shown
    # And once more, from its own file.
    again = ["--arch", "resnet56_cifar", "--weights", str(output), "--rates", "[0.5]*30", "--output"]
    assert tool("compress").main([*again, str(tmp_path / "y.safetensors")]) == 0
    _, spec = nd.load(tmp_path / "y.safetensors")
    assert spec.widths["layer1"] == 8
    assert set(spec.ranks.values()) == {1}


def test_the_solver_is_recorded(tmp_path: Path) -> None:
    words = ["--arch", "resnet56_cifar", "--rank", "[1]+[0]*54", "--output", str(tmp_path / "x.safetensors")]
    for solver in ("als", "tensorly"):
        assert tool("compress").main([*words, "--solver", solver]) == 0
        layers = nd.load(tmp_path / "x.safetensors")[1].provenance["decompose"]["layers"]
        assert {layer["solver"] for layer in layers.values()} == {solver}


@pytest.mark.parametrize(("kind", "dataset"), [("faster", "coco"), ("mask", "coco"), ("keypoint", "coco_kp")])
def test_train_and_evaluate(
    kind: str, dataset: str, compressed: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = {**TINY, "box_score_thresh": 0.0}
    del options["min_size"], options["max_size"]
    common = ["--data-path", str(shapes), "--dataset", dataset, "--device", "cpu", "-j", "0"]
    train = [*common, "--model", f"{kind}rcnn_cpresnet50_fpn", "--min-size", "64", "--max-size", "64", "-b", "2"]
    train += ["--model-kwargs", json.dumps(options), "--output-dir", str(out), "--lr", "0.001"]
    assert tool("train_det").main([*train, "--epochs", "1", "--weights-backbone", str(compressed)]) == 0
    names = {"checkpoint.pth", "model_0.pth", "last.safetensors", "best.safetensors", "metrics.jsonl", "metrics.json"}
    names |= {"coco_instances_results.json", "args.yaml", "log.txt"}
    assert {path.name for path in out.iterdir()} == names
    metrics = json.loads((out / "metrics.json").read_text())
    results = json.loads((out / "coco_instances_results.json").read_text())
    assert results
    annotations = "instances" if dataset == "coco" else "person_keypoints"
    from pycocotools.coco import COCO

    coco = COCO(str(shapes / "annotations" / f"{annotations}_val2017.json"))
    assert len(coco.loadRes(str(out / "coco_instances_results.json")).anns) == len(results)
    capsys.readouterr()
    assert tool("eval_det").main([*common, "--checkpoint", str(out / "checkpoint.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics
    if kind == "faster":
        content = torch.load(out / "checkpoint.pth", weights_only=True)
        assert {"model", "optimizer", "lr_scheduler", "epoch", "args"} <= content.keys()
        assert tool("train_det").main([*train, "--epochs", "2", "--resume", str(out / "checkpoint.pth")]) == 0
        assert torch.load(out / "checkpoint.pth", weights_only=True)["epoch"] == 1
        assert tool("train_det").main([*train, "--test-only", "--resume", str(out / "checkpoint.pth")]) == 0


def test_complexity_of_configs_and_search(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = TOOLS.parent / "configs" / "cifar10" / "resnet56_14m.yaml"
    assert tool("complexity").main([str(config), "--config", config.stem, "--json"]) == 0
    row, by_name = json.loads(capsys.readouterr().out)
    assert {**by_name, "file": str(config)} == row
    assert row["published"] == {"top1": 91.62, "macs": "14.47M", "params": "0.08M"}
    assert row["params"] == 87_633
    assert tool("compress").main(["--config", str(config), "--output", str(tmp_path / "x.safetensors")]) == 0
    assert tool("complexity").main([str(tmp_path / "x.safetensors"), "--json"]) == 0
    assert "87,633" in capsys.readouterr().out
    words = ["--arch", "resnet56_cifar", "--target-macs", "14.47e6", "--rank", "1", "--json"]
    assert tool("search").main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all({"rank", "rates", "macs", "params"} <= row.keys() for row in rows)
    assert all(0.99 * 14.47e6 <= row["macs"] <= 14.47e6 for row in rows)
    assert tool("search").main(words[:-1]) == 0


def test_make_shapes(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "s"), "--train", "2", "--val", "1", "--size", "32"]
    assert tool("make_shapes").main(words) == 0
    assert len(list((tmp_path / "s" / "train2017").iterdir())) == 2
    assert tool("make_shapes").main(words) == 2


def test_pareto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "p.png", tmp_path / "p.svg"]
    words = ["--network", "resnet110", "--relative", "--output", *map(str, files)]
    assert tool("pareto").main(words) == 0
    assert capsys.readouterr().out.splitlines() == [f"written: {file}" for file in files]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "DECORE-300" in files[1].read_text()


COMPRESS = ["--arch", "resnet56_cifar", "--output", "OUT/x.safetensors"]
TRAIN = ["--device", "cpu", "--data-path", "SHAPES", "--model", "fasterrcnn_cpresnet50_fpn", "--output-dir", "OUT/run"]
PARETO = ["--network", "vgg16_bn", "--output", "OUT/p.png"]
EVAL = ["--data-path", "SHAPES", "--device", "cpu"]


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        (
            "compress",
            ["--arch", "vgg", "--output", "OUT/x.safetensors"],
            2,
            "--arch: 'vgg' is unknown; expected",
        ),
        ("compress", [*COMPRESS, "--criterion", "x", "--rates", "[0.1]*30"], 2, "--criterion: 'x' is unknown"),
        ("compress", [*COMPRESS, "--decomposition", "x", "--rank", "1"], 2, "--decomposition: 'x' is unknown"),
        ("compress", [*COMPRESS, "--solver", "x", "--rank", "1"], 2, "--solver: 'x' is unknown"),
        ("compress", [*COMPRESS, "--decomposition", "tucker2", "--rank", "1", "--solver", "tensorly"], 2, "solver"),
        ("compress", [*COMPRESS, "--rank", "0"], 2, "rank is 0"),
        ("compress", [*COMPRESS, "--rank", "two"], 2, "argument -dr/--rank: 'two' is no rank; expected a number"),
        ("compress", [*COMPRESS, "--rates", "[0.1*3"], 2, "expected a term"),
        ("compress", [*COMPRESS, "--rank", "1", "--scope", "detector"], 2, "resnet56_cifar has none"),
        ("compress", [*COMPRESS, "--rank", "1", "--scope", "x"], 2, "--scope: 'x' is unknown; expected"),
        ("compress", [*COMPRESS, "--rates", "[0.1]*3"], 2, "rates has 3 values; resnet56_cifar takes 30"),
        ("compress", [*COMPRESS, "--rates", "[0.99]*30"], 2, "leaves none of its 16 filters"),
        ("compress", [*COMPRESS, "--weights", "OUT/none.pth"], 3, "none.pth: no such file"),
        ("compress", [*COMPRESS, "--weights", "TEXT"], 3, "text.pth: damaged, or no weights file"),
        ("compress", [*COMPRESS, "--weights", "CUT"], 3, "cut.safetensors: damaged"),
        ("compress", ["--arch", "resnet56_cifar", "--output", "OUT/x.pth"], 2, "ends with .safetensors"),
        ("compress", ["--output", "OUT/x.safetensors"], 2, "neither --arch nor --config"),
        ("compress", ["--config", "OUT/none.yaml", "--output", "OUT/x.safetensors"], 3, "none.yaml: no such file"),
        ("search", ["--arch", "resnet56_cifar"], 2, "no target"),
        (
            "search",
            ["--arch", "resnet56_cifar", "--target-macs", "6e7", "--decomposition", '{"conv1": "cp"}'],
            2,
            "--decomposition is by layer; expected one name",
        ),
        (
            "search",
            ["--arch", "resnet56_cifar", "--target-macs", "6e7", "--allocate", "--device", "cpu", "--batch-size", "8"],
            2,
            "--allocate with --rank, --device or --batch-size",
        ),
        (
            "search",
            ["--arch", "resnet56_cifar", "--target-params", "1000", "--rank", "1"],
            2,
            "nearest reachable: rank 1",
        ),
        ("complexity", [], 2, "no file is given"),
        ("complexity", ["TEXT"], 3, "text.pth: damaged, or no weights file"),
        ("complexity", ["CUT"], 3, "cut.safetensors: damaged"),
        ("train_det", [*TRAIN, "--model", "yolo"], 2, "--model: 'yolo' is unknown"),
        ("train_det", [*TRAIN, "--opt", "lion"], 2, "--opt: 'lion' is unknown"),
        ("train_det", [*TRAIN, "--lr-scheduler", "x"], 2, "--lr-scheduler: 'x' is unknown"),
        ("train_det", [*TRAIN, "--data-augmentation", "x"], 2, "--data-augmentation: 'x' is unknown"),
        ("train_det", [*TRAIN, "--dataset", "voc"], 2, "--dataset: 'voc' is unknown"),
        ("train_det", [*TRAIN, "--dataset", "coco_kp"], 2, "keypoints need both"),
        ("train_det", [*TRAIN, "--device", "tpu"], 2, "device tpu: not available"),
        ("train_det", [*TRAIN, "--batch-size", "0"], 2, "--batch-size is 0"),
        ("train_det", [*TRAIN, "--model-kwargs", "[]"], 2, "'[]' is a list; expected an object"),
        ("train_det", [*TRAIN, "--weights-backbone", "CUT"], 3, "cut.safetensors: damaged"),
        ("train_det", [*TRAIN, "--resume", "TEXT"], 3, "text.pth: damaged"),
        ("train_det", [*TRAIN, "--data-path", "OUT"], 3, "out: no images for val are recognised; expected"),
        ("eval_det", [*EVAL, "--checkpoint", "OUT/none.pth"], 3, "none.pth: no such file"),
        ("pareto", [*PARETO, "--network", "vgg"], 2, "unknown network 'vgg'; expected one of: vgg16_bn_cifar, "),
        ("pareto", [*PARETO, "--metric", "AP"], 2, "unknown metric of vgg16_bn_cifar 'AP'; expected one of: top1"),
        ("pareto", [*PARETO, "--output", "OUT/p.png", "OUT/p.bmp"], 2, "p.bmp: expected a name that ends with .png or"),
        ("pareto", [*PARETO, "--output", "OUT/p.png", "OUT/none/p.png"], 2, "none does not exist"),
        ("pareto", [*PARETO, "--measured", "OUT/none.json"], 3, "none.json: no such file; expected a JSON list"),
        ("pareto", [*PARETO, "--measured", "TEXT"], 3, "text.pth: cannot be read: "),
        ("eval_det", [*EVAL, "--checkpoint", "R50"], 2, "is a resnet50; expected a detector"),
    ],
)
def test_bad_input(
    name: str,
    words: list[str],
    code: int,
    message: str,
    compressed: Path,
    shapes: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(compressed.read_bytes()[:100_000])
    places = {"OUT": out, "SHAPES": shapes, "TEXT": tmp_path / "text.pth", "CUT": tmp_path / "cut.safetensors"}
    places["R50"] = compressed
    refused(lambda: tool(name).main(fill(words, places)), code, message, unwritten=out)


def test_the_page_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tool("results")
    config = tmp_path / "configs" / "cifar10" / "resnet56_14m.yaml"
    config.parent.mkdir(parents=True)
    (tmp_path / "configs" / "cifar10.yaml").write_text("epochs: 1\n")
    config.write_text((TOOLS.parent / "configs" / "cifar10" / config.name).read_text())
    monkeypatch.setattr(page, "ROOT", tmp_path)
    rows = [
        {"label": label, "top1": top1, "command": f"run {label}", "network": "resnet56_cifar", "dataset": "cifar10"}
        | {"macs_published": 14_473_344, "params": 87_633}
        for label, top1 in (("dense", 90.0), ("small", 88.5))
    ]
    (tmp_path / "measured.json").write_text(json.dumps(rows))
    words = ["--output", str(tmp_path / "results.md"), "--measured", str(tmp_path / "measured.json")]
    assert page.main(words) == 0
    text = " ".join((tmp_path / "results.md").read_text().split())  # without the padding of the tables
    assert (
        "| `cifar10/resnet56_14m` | 1 | `[0.]+[0.18]*29` | 87,633 | 0.08M | 13.15M | 14.47M | 14.47M | -0.02 % |"
        in text
    )
    assert "| small | 88.50 | -1.50 |" in text
    assert "run small" in text
