r"""Do the main job on generated data: train a detector, compress it, fine-tune it, compare the two.

Every step is a command that can be run by itself; it is printed before it runs. A configuration is a rank, a rank and
pruning rates, or a config: 4, 1:[0.]+[0.1]*2 (rank 0 decomposes nothing) or fasterrcnn_111g.

Examples:
  norton-det demo --output demo
  norton-det demo --output masks --model maskrcnn_cpresnet50_fpn --epochs 5 \
      --configurations 4 "1:[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

import norton_det as nd
from norton_det.cli.common import Parser
from norton_det.cli.detector_to_train import MODELS
from norton_det.cli.numbers import SIDE, whole
from norton_det.cli.options import CONFIGURATION, add_device, parse_configuration
from norton_det.data import CocoDataset
from norton_det.data.coco.synthetic_shapes import CLASSES
from norton_det.errors import UsageError, printable
from norton_det.evaluation.coco import MAIN_LINES
from norton_det.evaluation.predict import detect
from norton_det.files import write_atomically, write_json
from norton_det.formatting import format_count, table
from norton_det.models import ARCHITECTURES
from norton_det.runtime.device import check_device
from norton_det.runtime.timing import time_alternating
from norton_det.storage import make_folder
from norton_det.visualization.beside import draw_beside, joined
from norton_det.visualization.legend import Legend

# Objects of 30 to 60 pixels: small anchors and few proposals.
SMALL_IMAGES = {
    "anchor_sizes": [[16], [32], [64], [128], [256]],
    **{f"rpn_{when}_nms_top_n_{mode}": 100 for when in ("pre", "post") for mode in ("train", "test")},
    "box_batch_size_per_image": 64,
}
DRAWN = 4
REPEATS = 10
PUBLISHED = "1:[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
Row = dict[str, Any]
"""The report on one detector; ``setting`` is its compression configuration."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument_group("model").add_argument
    models = list(dict.fromkeys(MODELS.values()))
    add("--model", default="fasterrcnn_cpresnet50_fpn", choices=models, metavar="NAME", help="detector")
    flags = ("--configurations", "--settings")
    add(*flags, default=[PUBLISHED], nargs="+", metavar=CONFIGURATION, help="compression configurations to compare")
    add = parser.add_argument_group("data").add_argument
    add("--train", default=400, type=whole(1), metavar="N", help="training images")
    add("--val", default=100, type=whole(1), metavar="N", help="held-out images")
    add("--size", default=128, type=SIDE, metavar="S", help="side of the images in pixels")
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--epochs", default=3, type=whole(1), metavar="N", help="of training the dense detector")
    add("--finetune-epochs", default=2, type=whole(1), metavar="N", help="of fine-tuning a compressed one")
    add("--batch-size", default=4, type=whole(1), metavar="N", help="images in a batch")
    add_device(group)
    add("--amp", action="store_true", help="train in mixed precision")
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="DIR", help="folder to make for data, checkpoints, report and image")


def run(args: argparse.Namespace) -> None:
    """Run the steps, print and write the comparison."""
    check_device(args.device)
    configurations = {text: parse_configuration(text, args.model) for text in args.configurations}
    out = Path(args.output)
    if out.exists():
        raise UsageError(f"--output {out}: exists already; expected a new folder")
    make_folder(out)
    data = out / "shapes"
    step = _run("make-shapes", output=data, train=args.train, val=args.val, size=args.size)
    rows = [_dense(args, data, out / "dense")]
    rows[0]["steps"].insert(0, step)
    for number, (text, configuration) in enumerate(configurations.items(), start=1):
        rows.append(_compressed(args, data, out / f"setting{number}", text, configuration))
    models = {row["setting"]: nd.load(row["folder"] / "checkpoint.pth", args.device)[0] for row in rows}
    held_out = CocoDataset(data, "val")
    images = [held_out[i][0].to(args.device) for i in range(min(DRAWN, args.val))]
    _time(models, images[:1], rows)
    _report(rows, args, out / "report.json")
    _draw(models, images, out / "detections.png")


def _dense(args: argparse.Namespace, data: Path, folder: Path) -> Row:
    """Train the dense detector and return its row."""
    return _detector(args, data, folder, "dense", args.epochs)


def _compressed(args: argparse.Namespace, data: Path, folder: Path, text: str, configuration: Mapping[str, Any]) -> Row:
    """Compress the dense detector, fine-tune it and return its row."""
    file = folder.with_suffix(".safetensors")
    weights = folder.parent / "dense" / "checkpoint.pth"
    step = _run("compress", arch=args.model, weights=weights, **configuration, output=file)
    row = _detector(args, data, folder, text, args.finetune_epochs, weights=file)
    row["steps"].insert(0, step)
    return row


def _detector(args: argparse.Namespace, data: Path, folder: Path, setting: str, epochs: int, **start: Any) -> Row:
    """Train a detector from where ``start`` says, evaluate it and return its row."""
    common = {
        "data_path": data,
        "dataset": ARCHITECTURES[MODELS[args.model]].dataset,
        "device": args.device,
        "workers": 2,
    }
    training = {
        "model": args.model,
        "batch_size": args.batch_size,
        "min_size": args.size,
        "max_size": args.size,
        "model_kwargs": json.dumps(SMALL_IMAGES),
        "print_freq": 20,
        "opt": "adamw",
        "lr": 3e-4,
        "lr_steps": max(epochs - 1, 1),
        "epochs": epochs,
        "eval_every": epochs,
        "amp": args.amp,
    }
    checkpoint, evaluation = folder / "checkpoint.pth", folder / "evaluation"
    steps = [
        _run("train-det", **common, **training, **start, output_dir=folder),
        _run("eval-det", **common, checkpoint=checkpoint, output_dir=evaluation),
    ]
    net, spec = nd.load(checkpoint)
    file = folder / "detector.safetensors"
    nd.save(net, spec, file)
    complexity = nd.count_complexity(spec)
    return {
        "setting": setting,
        "folder": folder,
        "metrics": json.loads((evaluation / "metrics.json").read_text()),
        "macs": complexity.macs,
        "params": complexity.params,
        "megabytes": file.stat().st_size / 1e6,
        "steps": steps,
    }


def _run(command: str, **flags: Any) -> dict[str, Any]:
    """Run a command in a process of its own; return its words and the seconds that it took."""
    words = [command]
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    line = shlex.join(["norton-det", *words])
    print(f"\n$ {printable(line)}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "norton_det", *words], check=True)
    seconds = time.perf_counter() - start
    print(f"({seconds:.0f} s)", flush=True)
    return {"command": line, "seconds": seconds}


def _time(models: Mapping[str, nn.Module], images: list[Tensor], rows: list[Row]) -> None:
    """Add the times of one image to the rows: as trained, deployed, and the ratio to the dense one, both deployed."""
    runs = {name: _forward(net, images) for name, net in models.items()}
    runs |= {f"{name}, deployed": _forward(nd.deploy(net, images), images) for name, net in models.items()}
    seconds = time_alternating(runs, repeats=REPEATS, warmup=2)
    for row in rows:
        name = row["setting"]
        pairs = zip(seconds["dense, deployed"], seconds[f"{name}, deployed"], strict=True)
        row |= {
            "milliseconds": 1e3 * median(seconds[name]),
            "milliseconds_deployed": 1e3 * median(seconds[f"{name}, deployed"]),
            "speedup": median(a / b for a, b in pairs),
        }


def _forward(net: nn.Module, images: list[Tensor]) -> Callable[[], object]:
    def forward() -> object:
        with torch.inference_mode():
            return net(images)

    return forward


def _report(rows: list[Row], args: argparse.Namespace, path: Path) -> None:
    """Print the tables, and write all of it."""
    for kind in rows[0]["metrics"]:
        lines = MAIN_LINES[kind]
        cells = [(row["setting"], *(f"{row['metrics'][kind][line]:.3f}" for line in lines)) for row in rows]
        print(f"\n{table((kind, *lines), cells)}")
    size = f"{args.size}x{args.size}"
    header = ("cost", "MACs at 800x800", "parameters", "file, MB", f"ms at {size}", "ms, deployed", "minutes")
    print(f"\n{table(header, [_costs(row) for row in rows])}")
    for row in rows[1:]:
        print(f"\nDense takes {row['speedup']:.2f} times as long as {row['setting']} ({REPEATS} pairs, both deployed).")
    kept = [{name: value for name, value in row.items() if name != "folder"} for row in rows]
    title = f"{args.model}: {args.train} generated images of {size}, {args.val} held-out ones"
    write_json(path, {"title": title, "rows": kept})
    print(f"{printable(str(path))}: metrics, costs and commands")


def _costs(row: Row) -> list[str]:
    numbers = [f"{row[name]:.1f}" for name in ("megabytes", "milliseconds", "milliseconds_deployed")]
    minutes = sum(step["seconds"] for step in row["steps"]) / 60
    return [row["setting"], format_count(row["macs"]), format_count(row["params"]), *numbers, f"{minutes:.1f}"]


def _draw(models: Mapping[str, nn.Module], images: list[Tensor], path: Path) -> None:
    legend = Legend(dict(enumerate(CLASSES, start=1)))
    rows = [draw_beside(image, {name: detect(net, image) for name, net in models.items()}, legend) for image in images]
    write_atomically(path, to_pil_image(joined(rows, 1)).save)
    print(f"{printable(str(path))}: detections with a score above 0.5, {' and '.join(models)} side by side")
