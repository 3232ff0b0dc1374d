"""The report of a run: what it writes, that its numbers are those of the evaluation, and what it refuses."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Refused, tool
from PIL import Image

import norton_det as nd
from benchmarks.faults.random_coco import KEYPOINTS, indexed, random_data
from norton_det.data import CocoDataset
from norton_det.evaluation.coco import evaluate_results
from norton_det.reporting.analysis import analyse
from norton_det.reporting.curves import curves_figure, positions
from norton_det.reporting.detection_figures import (
    confusion_figure,
    errors_figure,
    precision_recall_figure,
    sizes_figure,
)
from norton_det.reporting.plots import as_svg, plain
from norton_det.reporting.report import write_report
from norton_det.reporting.run import Run, read_run

PICTURES = ("curves.png", "precision_recall.png", "confusion_matrix.png", "sizes.png", "errors.png")
SHEETS = ("predictions.jpg", "worst.jpg")
PARTS = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


class Page(HTMLParser):
    """A page whose elements are closed in the order in which they are opened; its text, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.text, self.links = "", []
        self.feed(path.read_text())
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.opened[-1:] != ["style"] else ""

    def rows(self) -> str:
        return " ".join(self.text.split())


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def results_of(data: CocoDataset, seed: int, kind: str = "segmentation") -> list[dict[str, Any]]:
    """Return most of the objects, a little beside where they are, and false alarms."""
    rng = np.random.default_rng(seed)
    rows = []
    for annotation in data.coco.dataset["annotations"]:
        if rng.random() < 0.8:
            box = [float(value) for value in np.array(annotation["bbox"]) + rng.uniform(-1, 1, 4)]
            row = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": box}
            rows.append({**row, kind: annotation[kind], "score": float(rng.uniform(0.4, 1))})
            wrong = [box[0], 0.0, *box[2:]]
            rows.append({**rows[-1], "bbox": wrong, "score": float(rng.uniform(0, 0.7))})
    return rows


@pytest.fixture
def run_of(shapes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the folder of a finished training on the shapes."""

    def write(name: str, seed: int = 0, *, about: bool = True, results: Any = None) -> Path:
        data, folder = CocoDataset(shapes, "val"), tmp_path / name
        folder.mkdir()
        rows = results_of(data, seed) if results is None else results
        metrics = evaluate_results(data.coco, rows, ["bbox", "segm"] if rows else ["bbox"])
        (folder / "coco_instances_results.json").write_text(json.dumps(rows))
        lines: list[dict[str, Any]] = []
        for epoch in range(2):
            for step in range(3):
                loss = dict.fromkeys(PARTS, 0.25)
                lines.append({"iteration": 3 * epoch + step, "epoch": epoch, "lr": 0.1, "loss": 1.0, **loss})
            flat = {f"{kind}_{line}": value for kind, values in metrics.items() for line, value in values.items()}
            lines.append({"epoch": epoch, "lr": 0.1, "train_loss": 1.0, **flat, "seconds": 90.0})
        lines = lines if about else [line for line in lines if "iteration" not in line]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if about:
            val = {"images": 3, "objects": 9, "annotations": str(data.annotations), "folder": str(data.folder)}
            cost = {"macs": 60 * 10**9, "params": 20 * 10**6, "dense_macs": 120 * 10**9, "dense_params": 40 * 10**6}
            content = {
                "command": ["norton-det", "train-det", "--model", "<b>x</b>"],
                "args": {"model": "maskrcnn_cpresnet50_fpn", "max_detections": None},
                "data": {"train": None, "val": val},
                "cost": cost,
                "classes": ["__background__", "circle"],
            }
            (folder / "args.yaml").write_text(yaml.safe_dump(content))
        return folder

    return write


def test_a_run_is_drawn_and_told_beside_the_dense_one(run_of: Callable[..., Path], shapes: Path) -> None:
    run, dense = run_of("compressed"), run_of("dense", 1)
    path = write_report([run], compare=dense, count=2, draws=40)
    assert path == run / "report.html"
    for name in PICTURES:
        assert min(size_of(run / name)) > 300
    for name in SHEETS:
        width, height = size_of(run / name)
        assert width > 3 * 480 - 1, "truth, run and dense beside each other"
        assert height > 480
    page = Page(path)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links), "nothing is outside"
    assert sum(link.startswith("data:") for link in page.links) == 2 + 2
    text = page.rows()
    data = CocoDataset(shapes, "val")
    for kind in ("bbox", "segm"):
        a, b = (
            evaluate_results(data.coco, json.loads((one / "coco_instances_results.json").read_text()), [kind])[kind]
            for one in (dense, run)
        )
        assert f"{kind} AP{a['AP']:.3f}{b['AP']:.3f}{b['AP'] - a['AP']:+.3f}" in text
    assert "60.00G" in text
    assert "-50 % against dense" in text
    assert "norton-det train-det --model '<b>x</b>'" in text, "as text, not as an element"
    assert "maskrcnn_cpresnet50_fpn" in text


def test_what_a_folder_lacks_is_left_out_and_told(
    run_of: Callable[..., Path], shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of("old", about=False)
    text = Page(write_report([run])).rows()
    assert "The detections are not analysed, because the validation annotations are missing" in text
    assert "--annotations names them" in caplog.text
    assert {path.name for path in run.iterdir()} & {*PICTURES, *SHEETS} == {"curves.png"}
    words = ["report", str(run), "--data-path", str(shapes), "--output", str(tmp_path / "x.html"), "--count", "1"]
    assert tool("report").main(words[1:]) == 0
    assert {*PICTURES, *SHEETS} <= {path.name for path in run.iterdir()}
    assert "What is found (segm)" in Page(tmp_path / "x.html").rows()


def test_several_runs_and_one_of_a_classifier(run_of: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [{"epoch": i, "lr": 0.1, "train_loss": 2.0, "top1": 60.0 + i, "top5": 90.0} for i in range(3)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    page = Page(path)
    assert page.links[:2] == ["#run0", "#run1"]
    assert "62.00" in page.text
    assert (tmp_path / "a" / "curves.png").exists()
    assert (tmp_path / "b" / "curves.png").exists()


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_reported(run_of: Callable[..., Path]) -> None:
    assert "0.000" in Page(write_report([run_of("nothing", results=[])], count=1)).text


@pytest.mark.slow
def test_held_out_images_are_those_that_are_evaluated(run_of: Callable[..., Path]) -> None:
    run = run_of("part")
    about = yaml.safe_load((run / "args.yaml").read_text())
    about["args"] |= {"val_fraction": 0.34, "split_seed": 1}
    (run / "args.yaml").write_text(yaml.safe_dump(about))
    rows = json.loads((run / "coco_instances_results.json").read_text())
    (run / "coco_instances_results.json").write_text(json.dumps(rows[:0]))
    page = Page(write_report([run], count=8))
    assert sum(link.startswith("data:") for link in page.links) == 1 + 1, "one of three, in the sample and as the worst"


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("metrics.jsonl", None, "metrics.jsonl: no such file; expected the folder of a training"),
        ("metrics.jsonl", '{"epoch": 0}\n{"epoch"\n{"epoch": 1}\n', "metrics.jsonl: line 2 is not JSON"),
        ("metrics.jsonl", "[1]\n", "line 1 is a list; expected an object"),
        ("metrics.jsonl", '{"epoch": -1}\n', "line 1: epoch is -1; expected a whole number of at least 0"),
        ("metrics.jsonl", '{"epoch": 0, "iteration": "2"}\n', "line 1: iteration is '2'; expected a whole number"),
        (
            "metrics.jsonl",
            '{"epoch": 0, "seconds": "2"}\n',
            "line 1: seconds is '2'; expected a finite number",
        ),
        ("metrics.jsonl", '{"epoch": 0, "top1": [2]}\n', "line 1: top1 is [2]; expected a finite number, or null"),
        ("metrics.jsonl", '{"epoch": 0, "lr": 1' + "0" * 400 + "}\n", "line 1: lr is 1000"),
        ("metrics.jsonl", '{"epoch": ' + "[" * 10**5 + "\n\n", "line 1 is not JSON"),
        ("args.yaml", "a: [", "args.yaml: no YAML: "),
        ("args.yaml", "args: [1]", "args.yaml: args is [1]; expected values by name"),
        ("args.yaml", "args: {max_detections: x}", "args.max_detections is 'x'; expected a whole number of at least 1"),
        ("args.yaml", "args: {val_fraction: '.1'}", "args.val_fraction is '.1'; expected a number between 0 and 1"),
        ("args.yaml", "args: {split_seed: x}", "args.split_seed is 'x'; expected a whole number"),
        ("args.yaml", "args: {keypoint_sigmas: 3}", "args.keypoint_sigmas is 3; expected a list of numbers"),
        ("args.yaml", "data: x", "data is 'x'; expected values by name"),
        ("args.yaml", "data: {val: [1]}", "data.val is [1]; expected values by name"),
        ("args.yaml", "data: {val: {annotations: 7}}", "data.val.annotations is 7; expected a text"),
        ("args.yaml", "cost: {macs: x}", "cost.macs is 'x'; expected a whole number"),
        ("args.yaml", "classes: 3", "classes is 3; expected a list of texts"),
        ("args.yaml", "versions: [1]", "versions is [1]; expected values by name"),
        ("args.yaml", "[1]", "args.yaml: holds a list; expected what a training wrote: fields with values"),
        ("coco_instances_results.json", "{}", "holds a dict; expected a list of COCO results"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    file: str, content: str | None, part: str, run_of: Callable[..., Path], refused: Refused
) -> None:
    run = run_of("spoilt")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    refused(lambda: tool("report").main([str(run)]), 3, part)


def test_a_run_with_a_line_that_is_cut_off_and_a_long_path_is_reported(run_of: Callable[..., Path]) -> None:
    run = run_of("cut")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tr')
    assert len(read_run(run).epochs) == 2
    about = yaml.safe_load((run / "args.yaml").read_text())
    about["data"]["val"]["annotations"] = "/x" * 2000
    about["data"]["val"]["folder"] = "y" * 300
    about["args"] |= {"val_fraction": 0.5, "split_seed": -(2**62)}
    (run / "args.yaml").write_text(yaml.safe_dump(about))
    assert "does not exist" in Page(write_report([run])).text
    names = {f"kind{i}_AP": 0.5 for i in range(20)} | {f"metric{i}": 1.0 for i in range(20)}
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "seconds": None, "top1": None, **names}) + "\n")
    write_report([run])


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("RUN --compare OLD", 3, "old: lacks detections; expected the folder of a detector's training"),
        ("RUN --output RUN/x.txt", 2, "expected a name that ends with .html"),
        ("RUN --annotations none.json", 3, "none.json: no such file"),
        ("RUN --count 0", 2, "--count is 0; expected at least 1"),
        ("RUN --draws 3", 2, "draws is 3; expected at least 40"),
    ],
)
def test_wrong_arguments(
    words: str, code: int, part: str, run_of: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    run, old = run_of("new"), tmp_path / "old"
    old.mkdir()
    (old / "metrics.jsonl").write_text("")
    filled = [word.replace("RUN", str(run)).replace("OLD", str(old)) for word in words.split()]
    refused(lambda: tool("report").main(filled), code, part)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_iterations_lie_in_their_epochs(steps: int) -> None:
    for every in (1, 3, 20):
        lines = [{"iteration": i, "epoch": i // steps} for i in range(0, 4 * steps, every)]
        for line, x in zip(lines, positions(lines, lines), strict=True):
            assert line["epoch"] <= x <= line["epoch"] + 1
            assert x == pytest.approx(line["iteration"] / steps, rel=every / steps)
    assert positions([{"epoch": 4}], []) == [5]


def test_a_run_without_an_epoch_has_curves() -> None:
    figure = curves_figure(Run(Path("run"), {}, [], []))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Learning rate", "Evaluation"]


def test_figures_of_many_classes() -> None:
    """Of 40 classes ten are named, and the cells of their matrix have no numbers."""
    content, results = random_data(5)
    content["categories"] = [{"id": i, "name": f"a long name, {i}", "keypoints": KEYPOINTS} for i in range(1, 41)]
    sides = [*analyse(indexed(content), {"a": results, "b": results[:3]}, "x")["bbox"].values()]
    for make in (precision_recall_figure, confusion_figure, sizes_figure, errors_figure):
        svg = as_svg(make(sides))
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")
        assert "#000000" not in svg
    assert not confusion_figure(sides).axes[0].texts
    few = {**content, "categories": content["categories"][:4]}
    one = [*analyse(indexed(few), {"a": results}, "x")["bbox"].values()]
    texts = [int(text.get_text()) for text in confusion_figure(one).axes[0].texts]
    assert sorted(texts) == sorted(one[0].confusion[one[0].confusion > 0].tolist())
    bars = errors_figure(one).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([*one[0].errors.costs.values()])


@pytest.mark.filterwarnings("error")
def test_names_are_no_formulas_and_all_in_the_legend() -> None:
    names = ["_a", "$x_$", r"\$5 $\frac", "b^{$"]
    content, results = random_data(5)
    content["categories"] = [{"id": i, "name": name, "keypoints": KEYPOINTS} for i, name in enumerate(names, start=1)]
    sides = [*analyse(indexed(content), {"_$a_$": results, "$\\b$": results[:3]}, "x")["bbox"].values()]
    figures = [make(sides) for make in (precision_recall_figure, confusion_figure, sizes_figure, errors_figure)]
    epochs = [{"epoch": 0, "lr": 0.1, "_$m_$": 1.0}]
    figures.append(curves_figure(Run(Path("r"), {}, epochs, []), {"_$r_$": Run(Path("s"), {}, epochs, [])}))
    for figure in figures:
        assert as_svg(figure).endswith("</svg>")
    curves = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert curves == [plain(f"{name} ({curve.objects})") for name, curve in sides[0].curves.items() if curve.objects]
    assert len(curves) > 1
    assert "_a" in curves[0]
    assert len(figures[2].legends[0].get_texts()) == len(figures[3].axes[0].get_legend().get_texts()) == 2
    assert plain(names[2]) == r"\\$5 \$\frac"


@pytest.mark.slow
def test_keypoints_are_drawn(tmp_path: Path) -> None:
    content, results = random_data(6)
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "coco_instances_results.json").write_text(
        json.dumps([{k: v for k, v in row.items() if k != "segmentation"} for row in results])
    )
    (tmp_path / "metrics.jsonl").write_text("")
    path = write_report([tmp_path], annotations=tmp_path / "truth.json", images=tmp_path, count=1)
    assert "What is found (keypoints)" in Page(path).text
    assert (tmp_path / "errors.png").exists(), "that of the boxes"


def test_missing_and_broken_images_are_skipped_and_told(
    run_of: Callable[..., Path], shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, folder, data = run_of("elsewhere"), tmp_path / "images", CocoDataset(shapes, "val")
    folder.mkdir()
    files = [data.coco.imgs[number]["file_name"] for number in data.ids]
    for file in files[1:]:
        (folder / file).write_bytes((data.folder / file).read_bytes())
    (folder / files[1]).write_bytes(b"nothing")
    page = Page(write_report([run], images=folder))
    text = "These images are not drawn, because they are missing or cannot be read: "
    assert f"{text}{files[0]}, {files[1]}." in page.rows()
    assert caplog.text.count("an image is not drawn") == 2
    assert 1 <= sum(link.startswith("data:") for link in page.links) <= 2 * len(files[2:])


@pytest.mark.slow
def test_a_report_has_no_sheets_where_no_image_is_read(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of("elsewhere")
    (tmp_path / "empty").mkdir()
    page = Page(write_report([run], images=tmp_path / "empty"))
    assert "These images are not drawn" in page.text
    assert "Validation images" not in page.text
    assert not any(link.startswith("data:") for link in page.links)


@pytest.mark.slow
def test_costs_of_an_old_run_are_counted(tmp_path: Path) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    nd.save(nd.build(spec), spec, tmp_path / "last.safetensors")
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "lr": 0.1, "train_loss": 2.5, "top1": 61.0}')
    counted = nd.count_complexity(spec)
    assert read_run(tmp_path).cost == {"macs": counted.macs, "params": counted.params}
