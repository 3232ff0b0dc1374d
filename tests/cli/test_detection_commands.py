"""train_det.py: torchvision's flags and commands, every kind of training, stopping and going on, bad input."""

import json
import logging
import shlex
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, TOOLS, AtLine, Refused, epochs_in, tool
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import norton_det as nd
from norton_det.cli import train_det
from norton_det.cli.common import EXIT_TERMINATED, Parser
from norton_det.cli.config_defaults import parse_arguments
from norton_det.config import read_config
from norton_det.runtime.device import default_device, usable_cores

# The flags of torchvision's reference detection script with their defaults, but for --data-path; the device is one that
# is there, and the workers are no more than the cores.
TORCHVISIONS = {
    "dataset": "coco",
    "model": "maskrcnn_resnet50_fpn",
    "device": default_device(),
    "batch_size": 2,
    "epochs": 26,
    "workers": min(4, usable_cores()),
    "opt": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "norm_weight_decay": None,
    "lr_scheduler": "multisteplr",
    "lr_step_size": 8,
    "lr_steps": [16, 22],
    "lr_gamma": 0.1,
    "print_freq": 20,
    "output_dir": None,
    "resume": "",
    "start_epoch": 0,
    "aspect_ratio_group_factor": 3,
    "rpn_score_thresh": None,
    "trainable_backbone_layers": None,
    "data_augmentation": "hflip",
    "sync_bn": False,
    "test_only": False,
    "use_deterministic_algorithms": False,
    "world_size": 1,
    "dist_url": "env://",
    "weights": None,
    "weights_backbone": None,
    "amp": False,
    "use_copypaste": False,
    "backend": "pil",
    "use_v2": False,
}


def parse(line: str) -> Any:
    parser = Parser()
    train_det.add_arguments(parser)
    return parse_arguments(parser, shlex.split(line))


def test_torchvisions_flags_have_its_defaults() -> None:
    args = vars(parse(""))
    assert {name: args[name] for name in TORCHVISIONS} == TORCHVISIONS
    line = "-b 3 -j 1 --wd 0.1 --weight-decay 0.2 --start_epoch 2 --backend TENSOR --use-v2 --lr-scheduler "
    args = parse(
        line + "CosineAnnealingLR --opt SGD --world-size 8 --dist-url file:///x --sync-bn --use-copypaste --amp"
    )
    assert (args.batch_size, args.workers, args.weight_decay, args.start_epoch) == (3, 1, 0.2, 2)
    assert (args.backend, args.use_v2, args.world_size, args.amp) == ("tensor", True, 8, True)
    assert (args.lr_scheduler, args.opt) == ("cosineannealinglr", "sgd")


@pytest.mark.parametrize("net", ["resnet50", "cpresnet50"])
@pytest.mark.parametrize(
    ("kind", "line", "version"),
    [
        *product(
            ("faster", "mask"),
            ["--dataset coco --epochs 26 --lr-steps 16 22 --aspect-ratio-group-factor 3"],
            ("", "_v2"),
        ),
        ("keypoint", "--dataset coco_kp --epochs 46 --lr-steps 36 43 --aspect-ratio-group-factor 3", ""),
    ],
)
def test_torchvisions_commands_are_understood(kind: str, line: str, version: str, net: str) -> None:
    model = f"{kind}rcnn_{net}_fpn{version}"
    args = parse(f"{line} --model {model} --weights-backbone ResNet50_Weights.IMAGENET1K_V1 --device cpu")
    train_det._check(args)
    assert args.model == model
    assert args.lr_steps == ([36, 43] if kind == "keypoint" else [16, 22])


def test_the_original_flags_and_the_configs_say_how_to_compress() -> None:
    args = parse("-dr 2 -cpr [0.]+[0.1]*19")
    assert (args.rank, args.rates) == (2, "[0.]+[0.1]*19")
    assert parse("--rank 2 --compress_rate [0.]").rates == "[0.]"
    files = sorted((TOOLS.parent / "configs" / "coco").glob("*.yaml"))
    assert len(files) == 9
    for file in files:
        args, config = parse(f"--config {file.stem} --lr auto --device cpu"), read_config(file)
        assert (args.model, args.dataset, args.rank) == (config.arch, config.dataset, config.rank)
        assert (args.rates, args.scope, args.decomposition) == (config.rates, config.scope, config.decomposition)
        assert args.lr == "auto", "a flag overrides the recipe"
        assert args.epochs == config.recipe["epochs"]
        train_det._check(args)


def words_of(shapes: Path, out: Path, model: str) -> list[str]:
    options = {**TINY, "box_score_thresh": 0.0}
    line = f"--data-path {shapes} --output-dir {out} --model {model} --device cpu -j 0 --print-freq 1"
    return [*shlex.split(line), "--model-kwargs", json.dumps(options)]


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of a run with all there is, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert tool("train_det").main([*words_of(shapes, folder, "fasterrcnn_cpresnet50_fpn"), *EVERYTHING]) == 0
    return folder


EVERYTHING = shlex.split(
    "-dr 1 -cpr [0.5]*20 --form dense --epochs 2 --lr auto --accumulate 2 --clip-grad-norm 1 --amp --tensorboard "
    "--model-ema --model-ema-steps 1 --model-ema-decay 0.99 --norm-weight-decay 0 --opt sgd_nesterov "
    "--lr-scheduler cosineannealinglr --eval-every 2 --data-augmentation lsj --use-copypaste --backend tensor"
)


def test_a_dense_network_is_compressed_and_trained_with_everything(whole: Path) -> None:
    names = {"checkpoint.pth", "model_0.pth", "model_1.pth", "last.safetensors", "best.safetensors", "metrics.jsonl"}
    names |= {"args.yaml", "log.txt", "metrics.json", "coco_instances_results.json"}
    found = {path.name for path in whole.iterdir() if not path.name.startswith("events.out.tfevents")}
    assert found == names
    assert len(list(whole.iterdir())) == len(names) + 1
    events = EventAccumulator(str(whole)).Reload()
    assert [event.step for event in events.Scalars("iteration/loss_classifier")] == [0, 1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("train_loss")] == [2, 5]
    assert {"bbox_AP", "lr", "iteration/lr"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {f"validation/image {number}" for number in (1, 2, 3)}
    averaged, spec = nd.load(whole / "last.safetensors")
    assert set(spec.ranks.values()) == {1}
    assert spec.widths["layer1"] == 128
    trained, _ = nd.load(whole / "checkpoint.pth")
    name = "roi_heads.box_head.fc6.weight"
    assert not torch.equal(averaged.state_dict()[name], trained.state_dict()[name])
    content = torch.load(whole / "checkpoint.pth", weights_only=True)
    assert {"model", "optimizer", "lr_scheduler", "epoch", "args", "scaler"} <= content.keys()
    assert content["args"]["lr"] == 0.02 / 16 * 4, "2 images a batch, 2 batches an update"
    lines = epochs_in(whole)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert lines[1]["bbox_AP"] == metrics["bbox"]["AP"]
    assert "bbox_AP" not in lines[0]


def test_sigterm_ends_a_training_after_an_update_and_it_goes_on_exactly(
    whole: Path,
    shapes: Path,
    tmp_path: Path,
    reads: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*words_of(shapes, tmp_path, "fasterrcnn_cpresnet50_fpn"), *EVERYTHING]
    monkeypatch.setattr(logging.getLogger("norton_det"), "handlers", [AtLine("Epoch: [0]  [0/3]")])
    with caplog.at_level("INFO", "norton_det"):
        assert tool("train_det").main(words) == EXIT_TERMINATED
        content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
        assert (content["epoch"], content["step"]) == (-1, 2), "an update is two batches"
        reads.clear()
        assert tool("train_det").main([*words, "--resume", str(tmp_path / "checkpoint.pth")]) == 0
        assert reads == {str(tmp_path / "checkpoint.pth"): 1}
    assert "was trained with" not in caplog.text
    ours, theirs = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (tmp_path, whole))
    for part in ("model", "model_ema"):
        assert all(torch.equal(ours[part][name], value) for name, value in theirs[part].items())
    assert ours["lr_scheduler"] == theirs["lr_scheduler"]
    momenta = [[entry["momentum_buffer"] for entry in c["optimizer"]["state"].values()] for c in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    assert (tmp_path / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def test_a_compressed_file_is_not_compressed_again(
    whole: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(shapes, tmp_path, "fasterrcnn_cpresnet50_fpn"), "--weights", str(whole / "last.safetensors")]
    with caplog.at_level("WARNING"):
        assert tool("train_det").main([*words, "--test-only", "--rank", "1"]) == 0
    assert "is compressed already; --rank and --rates are ignored" in caplog.text
    assert capsys.readouterr().out.startswith("IoU metric: bbox\n AP ")
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, whole))
    assert ours == theirs, "what was measured in training is measured of the file"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--lr fast", 2, "argument --lr: 'fast' is neither a number nor auto"),
        ("--backend cairo", 2, "argument --backend: 'cairo' is unknown; expected one of: pil, tensor, tv_tensor"),
        ("--use-copypaste", 2, "--use-copypaste with --data-augmentation hflip: expected lsj"),
        ("--keypoint-pairs a,b", 2, "--keypoint-pairs with --dataset coco: expected coco_kp"),
        ("--keypoint-pairs a", 2, "argument --keypoint-pairs: 'a' is no pair of names; expected A,B"),
        ("--sync-bn", 2, "--sync-bn with --device cpu: expected cuda"),
        ("--accumulate 0", 2, "--accumulate is 0; expected at least 1"),
        ("--eval-every 0", 2, "--eval-every is 0; expected at least 1"),
        ("-b 7", 2, "batch_size is 7 in 1 processes; expected at most 6"),
        ("-cpr [0.1]*3", 2, "rates has 3 values"),
        ("--rank 0", 2, "rank is 0"),
        ("--form slow", 2, "argument --implementation/--form: 'slow' is unknown"),
        ("--config NONE", 2, "unknown config 'NONE'; expected a .yaml file or one of: "),
        ("--config NONE.yaml", 3, "NONE.yaml: no such file; expected a config"),
    ],
)
def test_bad_input(words: str, code: int, message: str, shapes: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    common = words_of(shapes, out, "fasterrcnn_cpresnet50_fpn")
    refused(lambda: tool("train_det").main([*common, *shlex.split(words)]), code, message, unwritten=out)


def test_keypoints_of_one_side_need_pairs_or_no_flip(shapes: Path, tmp_path: Path, refused: Refused) -> None:
    folder, out = tmp_path / "shapes", tmp_path / "out"
    shutil.copytree(shapes, folder)
    path = folder / "annotations" / "person_keypoints_train2017.json"
    path.write_text(path.read_text().replace('"right", ', '"starboard", '))
    words = [*words_of(folder, out, "keypointrcnn_cpresnet50_fpn"), "--dataset", "coco_kp"]
    message = "keypoint 'left' has a side and no certain partner among centre, top, starboard, bottom, left; expected"
    refused(lambda: tool("train_det").main(words), 2, message, unwritten=out)
    pairs = shlex.split("--keypoint-pairs left,starboard top,top")
    refused(lambda: tool("train_det").main([*words, *pairs]), 2, "pair top,top: 'top' occurs twice", unwritten=out)
    line = f"--data-path {folder} --dataset coco_kp"
    paired, _ = train_det._images(parse(f"{line} --keypoint-pairs left,starboard"))
    assert paired.transform.flipped_order == [0, 1, 4, 3, 2]
    unflipped, _ = train_det._images(parse(f"{line} --no-hflip"))
    assert unflipped.transform.probability == 0


@pytest.mark.parametrize(
    ("split", "fault", "message"),
    [
        ("train", {"category_id": 9}, "unknown categories: annotation 1: category_id 9"),
        ("train", {"segmentation": []}, "objects without mask: annotation 1"),
        ("val", {"area": None}, "wrong areas: annotation 1"),
    ],
)
def test_bad_annotations_are_refused_before_the_training(
    split: str, fault: dict[str, Any], message: str, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    folder, out = tmp_path / "shapes", tmp_path / "out"
    shutil.copytree(shapes, folder)
    path = folder / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= fault
    path.write_text(json.dumps(content))
    words = words_of(folder, out, "maskrcnn_cpresnet50_fpn")
    refused(lambda: tool("train_det").main(words), 3, f"{path}: {message}", unwritten=out)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn_v2", "maskrcnn_cpresnet50_fpn_v2"])
def test_torchvisions_second_version_is_trained_evaluated_and_counted(
    model: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [*words_of(shapes, run, model), "--epochs", "1", "--rank", "1", "--rates", "[0.5]*20"]
    assert tool("train_det").main(words) == 0
    file = str(run / "last.safetensors")
    assert nd.load(file)[1].arch == model.replace("_resnet50", "_cpresnet50")
    capsys.readouterr()
    assert tool("eval_det").main(["--checkpoint", file, "--data-path", str(shapes), "--device", "cpu", "-j", "0"]) == 0
    assert "AP50" in capsys.readouterr().out
    assert tool("complexity").main([file]) == 0
    assert "roi_heads.box_head.3.0" in capsys.readouterr().out
