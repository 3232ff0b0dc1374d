"""train_cls.py and eval_cls.py on small class folders; bad input."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Refused, epochs_in, fill, tool

import norton_det as nd

TRAIN = ["--data-path", "CLASSES", "--device", "cpu", "-j", "0", "-b", "8", "--epochs", "2", "--output-dir", "OUT"]


def run(name: str, words: list[str], **places: Path) -> int:
    return tool(name).main(fill(words, places))


def test_a_compressed_file_is_fine_tuned_and_evaluated(
    classes: Path, small_net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CLASSES": classes, "OUT": tmp_path, "NET": small_net}
    words = [*TRAIN, "--weights", "NET", "--lr", "0.005", "--lr-scheduler", "cosineannealinglr", "--epochs", "4"]
    words += ["--lr-warmup-epochs", "1", "--lr-warmup-method", "linear", "--holdout", "8", "--tensorboard"]
    assert run("train_cls", words, **places) == 0
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("events.out.tfevents")}
    lines = epochs_in(tmp_path)
    best = max(lines, key=lambda line: line["top1"])["epoch"]
    others = {"best.safetensors", "checkpoint.pth", "last.safetensors", "metrics.jsonl", "args.yaml", "log.txt"}
    assert names == {f"model_{epoch}.pth" for epoch in (2, 3, best)} | others
    assert len(list(tmp_path.iterdir())) == len(names) + 1
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert nd.load(tmp_path / "last.safetensors")[1] == replace(
        nd.load(small_net)[1], classes=("black", "grey", "white")
    )
    best = max(line["top1"] for line in lines)
    common = ["--data-path", "CLASSES", "--device", "cpu", "-j", "0", "--holdout", "8", "--json", "--checkpoint"]
    for file, top1 in (("best.safetensors", best), ("last.safetensors", lines[-1]["top1"])):
        capsys.readouterr()
        assert run("eval_cls", [*common, str(tmp_path / file)], **places) == 0
        assert json.loads(capsys.readouterr().out) == {"top1": top1, "top5": 100, "images": 8}
    assert run("eval_cls", ["--checkpoint", str(tmp_path / "checkpoint.pth"), *common[:-2]], **places) == 0
    assert "Acc@1" in capsys.readouterr().out
    assert run("train_cls", [*TRAIN, "--weights", str(tmp_path / "last.safetensors"), "--test-only"], **places) == 0
    assert "of 12 images" in capsys.readouterr().out


def test_every_kind_of_training_on_class_folders(classes: Path, small_net: Path, tmp_path: Path) -> None:
    places = {"CLASSES": classes, "OUT": tmp_path, "NET": small_net}
    sizes = ["--train-crop-size", "32", "--val-crop-size", "32", "--val-resize-size", "36"]
    words = [*TRAIN, "--weights", "NET", "--dataset", "imagenet", *sizes, "--auto-augment", "ra", "--random-erase", "1"]
    words += ["--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--model-ema", "--model-ema-steps", "2", "--amp"]
    words += ["--channels-last", "--opt", "adamw", "--lr", "0.001", "--lr-schedule-by", "iteration"]
    assert run("train_cls", words, **places) == 0
    averaged, _ = nd.load(tmp_path / "last.safetensors")
    trained, _ = nd.load(tmp_path / "checkpoint.pth")
    assert not torch.equal(averaged.linear.weight, trained.linear.weight)


def test_a_dense_network_and_a_config(classes: Path, tmp_path: Path) -> None:
    config = tmp_path / "row.yaml"
    config.write_text("arch: resnet56_cifar\ndataset: cifar10\nrecipe: {epochs: 1, lr: 0.003, batch_size: 12}\n")
    words = ["--config", str(config), "--data-path", "CLASSES", "--device", "cpu", "-j", "0", "--output-dir", "OUT"]
    assert run("train_cls", words, CLASSES=classes, OUT=tmp_path / "out") == 0
    net, spec = nd.load(tmp_path / "out" / "last.safetensors")
    assert (spec.arch, spec.num_classes, dict(spec.ranks)) == ("resnet56_cifar", 3, {})
    (line,) = epochs_in(tmp_path / "out")
    assert line["lr"] == 0.003
    torch.save(net.state_dict(), tmp_path / "dense.pt")
    words = ["--model", "resnet56_cifar", "--checkpoint", str(tmp_path / "dense.pt"), "--data-path", "CLASSES"]
    assert run("eval_cls", [*words, "--device", "cpu", "-j", "0"], CLASSES=classes) == 0


def test_a_checkpoint_is_read_once(classes: Path, small_net: Path, tmp_path: Path, reads: Counter[str]) -> None:
    places = {"CLASSES": classes, "OUT": tmp_path, "NET": small_net}
    assert run("train_cls", [*TRAIN, "--weights", "NET", "--epochs", "1", "--implementation", "auto"], **places) == 0
    checkpoint = str(tmp_path / "checkpoint.pth")
    content = torch.load(checkpoint, weights_only=True)
    chosen = content["args"]["implementations"]
    assert chosen
    reads.clear()
    assert run("train_cls", [*TRAIN, "--resume", checkpoint, "--implementation", "auto"], **places) == 0
    assert reads == {checkpoint: 1}
    args = torch.load(checkpoint, weights_only=True)["args"]
    assert args["implementations"] == chosen, "what was chosen is kept"
    file = str(tmp_path / "last.safetensors")
    assert run("train_cls", [*TRAIN, "--resume", file, "--test-only"], **places) == 0
    # The first version called them forms.
    content["args"]["forms"], content["args"]["form"] = content["args"].pop("implementations"), "auto"
    torch.save(content, checkpoint)
    assert run("train_cls", [*TRAIN, "--resume", checkpoint, "--form", "auto"], **places) == 0
    assert torch.load(checkpoint, weights_only=True)["args"]["implementations"] == chosen


EVAL = ["--data-path", "CLASSES", "--device", "cpu", "-j", "0", "--checkpoint"]


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        ("train_cls", TRAIN, 2, "--model is missing"),
        ("train_cls", [*TRAIN, "--weights", "NONE"], 3, "none.pth: no such file; expected weights"),
        ("train_cls", [*TRAIN, "--model", "alexnet"], 2, "--model: 'alexnet' is unknown; expected one of: densenet40"),
        (
            "train_cls",
            [*TRAIN, "--model", "fasterrcnn_cpresnet50_fpn"],
            2,
            "--model: 'fasterrcnn_",
        ),
        ("train_cls", [*TRAIN, "--model", "resnet50", "--weights", "NET"], 2, "is a resnet56_cifar; --model is resnet"),
        ("train_cls", [*TRAIN, "--model", "resnet56_cifar", "--weights", "OUT"], 3, "out: no such file"),
        ("train_cls", [*TRAIN, "--weights", "TEN"], 2, "has 10 classes; "),
        ("train_cls", [*TRAIN, "--weights", "NET", "--data-path", "NONE"], 3, "none.pth: no such folder"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--dataset", "mnist"], 2, "--dataset: 'mnist' is unknown"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--opt", "lion"], 2, "--opt: 'lion' is unknown"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--lr-scheduler", "x"], 2, "--lr-scheduler: 'x' is unknown"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--lr-schedule-by", "x"], 2, "--lr-schedule-by: 'x' is unknown"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--lr-warmup-epochs", "2"], 2, "lr_warmup_epochs is 2"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--auto-augment", "ra"], 2, "only with --dataset imagenet"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--holdout", "24"], 2, "holdout is 24; expected between 1 and 23"),
        ("train_cls", [*TRAIN, "--weights", "NET", "-b", "25"], 2, "batch_size is 25 in 1 processes"),
        ("train_cls", [*TRAIN, "--weights", "NET", "-b", "0"], 2, "--batch-size is 0; expected at least 1"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--sync-bn"], 2, "--sync-bn with --device cpu"),
        ("train_cls", [*TRAIN, "--weights", "NET", "--device", "tpu"], 2, "device tpu: not available"),
        ("train_cls", [*TRAIN, "--resume", "NONE"], 3, "none.pth: no such file"),
        ("train_cls", [*TRAIN, "--resume", "NET"], 3, "lacks model, optimizer"),
        ("eval_cls", [*EVAL, "NONE"], 3, "none.pth: no such file; expected a compressed file"),
        ("eval_cls", [*EVAL, "NONE", "--model", "resnet56_cifar"], 3, "none.pth: no such file"),
        ("eval_cls", [*EVAL, "NET", "--model", "resnet50"], 2, "is a resnet56_cifar; --model is resnet50"),
        ("eval_cls", [*EVAL, "NET", "--split", "dev"], 2, "unknown split 'dev'"),
        ("eval_cls", [*EVAL, "TEN"], 2, "has 10 classes; "),
    ],
)
def test_bad_input(
    name: str,
    words: list[str],
    code: int,
    message: str,
    classes: Path,
    small_net: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    spec = nd.Spec("resnet56_cifar", 10)
    nd.save(nd.build(spec), spec, tmp_path / "ten.safetensors")
    places = {"CLASSES": classes, "NET": small_net, "OUT": tmp_path / "out"}
    places |= {"TEN": tmp_path / "ten.safetensors", "NONE": tmp_path / "none.pth"}
    refused(lambda: run(name, words, **places), code, message, unwritten=places["OUT"])


def test_other_classes_are_refused(classes: Path, small_net: Path, tmp_path: Path, refused: Refused) -> None:
    """Also where their number is the same."""
    renamed = tmp_path / "renamed"
    shutil.copytree(classes, renamed)
    for split in ("train", "test"):
        (renamed / split / "grey").rename(renamed / split / "green")
    net, spec = nd.load(small_net)
    nd.save(net, replace(spec, classes=("black", "grey", "white")), tmp_path / "named.safetensors")
    places = {"CLASSES": renamed, "OUT": tmp_path / "out", "NAMED": tmp_path / "named.safetensors"}
    message = "named.safetensors: has other classes than the data: 'grey', not 'green' (label 1)"
    refused(lambda: run("train_cls", [*TRAIN, "--weights", "NAMED"], **places), 3, message, unwritten=places["OUT"])
    refused(lambda: run("train_cls", [*TRAIN, "--resume", "NAMED", "--test-only"], **places), 3, message)
    refused(lambda: run("eval_cls", [*EVAL, "NAMED"], **places), 3, message)


def test_tensorboard_that_lacks(
    classes: Path,
    small_net: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    places = {"CLASSES": classes, "NET": small_net, "OUT": tmp_path}
    words = [*TRAIN, "--weights", "NET", "--tensorboard"]
    refused(lambda: run("train_cls", words, **places), 2, "pip install norton-det[tensorboard]")
