"""The main job on generated data: train a detector, compress it, fine-tune it, compare them.

Every step is a command that can be run by itself; it is printed before it runs. A setting is a rank, a rank and
pruning rates, or a config: 4, 1:[0.]+[0.1]*2 (rank 0 decomposes nothing) or configs/coco/fasterrcnn_111g.yaml.

Example:
  --output masks --model maskrcnn_cpresnet50_fpn --epochs 5 --settings 4 "1:[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

import norton_det as nd
from norton_det.cli.common import Parser, check_counts, command, parse_setting
from norton_det.data import CocoDataset
from norton_det.data.coco.synthetic_shapes import CLASSES
from norton_det.errors import UsageError
from norton_det.evaluation.coco import MAIN_LINES
from norton_det.evaluation.predict import detect
from norton_det.files import write_atomically, write_json
from norton_det.formatting import human, table
from norton_det.runtime.timing import time_alternating
from norton_det.visualization.draw import Legend, draw_detections, side_by_side

# Objects of 30 to 60 pixels: small anchors and few proposals.
SMALL_IMAGES = {
    "anchor_sizes": [[16], [32], [64], [128], [256]],
    **{f"rpn_{when}_nms_top_n_{mode}": 100 for when in ("pre", "post") for mode in ("train", "test")},
    "box_batch_size_per_image": 64,
}
SHOWN = 8
REPEATS = 10
SETTING = "1:[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder to make for data, checkpoints and the picture")
    add("--model", default="fasterrcnn_cpresnet50_fpn", help="(default: fasterrcnn_cpresnet50_fpn)")
    add("--train", default=400, type=int, help="training images (default: 400)")
    add("--val", default=100, type=int, help="held-out images (default: 100)")
    add("--epochs", default=3, type=int, help="of training the dense detector (default: 3)")
    add("--finetune-epochs", default=2, type=int, help="of fine-tuning a compressed one (default: 2)")
    add(
        "--settings", default=[SETTING], nargs="+", metavar="RANK[:RATES]|FILE", help=f"(default: {SETTING}, published)"
    )
    add("--size", default=128, type=int, help="side of the images in pixels (default: 128)")
    add("--batch-size", default=4, type=int, help="(default: 4)")
    add("--device", default="cpu", help="(default: cpu)")
    add("--amp", action="store_true", help="train in mixed precision")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, run the steps, print and write the comparison."""
    args = _parser().parse_args(argv)
    check_counts(args, train=1, val=1, epochs=1, finetune_epochs=1, batch_size=1)
    settings = [parse_setting(text, args.model) for text in args.settings]
    out = Path(args.output)
    if out.exists():
        raise UsageError(f"--output {out}: exists already; expected a new folder")
    out.mkdir(parents=True)
    data = out / "shapes"
    made = _run("make_shapes", output=data, train=args.train, val=args.val, size=args.size)
    rows = [_detector("dense", out / "dense", data, args)]
    rows[0]["steps"].insert(0, made)
    for text, setting in zip(args.settings, settings, strict=True):
        folder = out / f"setting{len(rows)}"
        compressed = f"{folder}.safetensors"
        flags = {**setting, "output": compressed}
        weights = out / "dense" / "checkpoint.pth"
        step = _run("compress", arch=args.model, weights=weights, **flags)
        rows.append(_detector(text, folder, data, args, compressed))
        rows[-1]["steps"].insert(0, step)
    models = {row["setting"]: nd.load(row["folder"] / "checkpoint.pth")[0] for row in rows}
    images = [CocoDataset(data, "val")[i][0].to(args.device) for i in range(min(SHOWN, args.val))]
    _time({name: net.to(args.device) for name, net in models.items()}, images[:1], rows)
    _report(rows, args, out / "report.json")
    _draw(models, images, out / "detections.png")


def _detector(
    setting: str, folder: Path, data: Path, args: argparse.Namespace, compressed: str | None = None
) -> dict[str, Any]:
    """Train, or fine-tune what is compressed, and evaluate; return what the report says of it."""
    epochs = args.finetune_epochs if compressed else args.epochs
    kind = {"data_path": data, "dataset": "coco_kp" if args.model.startswith("keypoint") else "coco"}
    flags = {
        **kind,
        "model": args.model,
        "device": args.device,
        "batch_size": args.batch_size,
        "workers": 2,
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
    if compressed:
        flags |= {"weights": compressed, "norm_layer": "BatchNorm2d", "trainable_backbone_layers": 5}
    checkpoint = folder / "checkpoint.pth"
    steps = [
        _run("train_det", **flags, output_dir=folder),
        _run("eval_det", checkpoint=checkpoint, **kind, device=args.device, workers=2, output_dir=folder),
    ]
    net, spec = nd.load(checkpoint)
    file = folder / "detector.safetensors"
    nd.save(net, spec, file)
    cost = nd.count_complexity(spec)
    return {
        "setting": setting,
        "folder": folder,
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "macs": cost.macs,
        "params": cost.params,
        "megabytes": file.stat().st_size / 1e6,
        "steps": steps,
    }


def _run(tool: str, **flags: Any) -> dict[str, Any]:
    """Run a tool and return its command and the seconds that it took."""
    words = [f"tools/{tool}.py"]
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    line = f"python {shlex.join(words)}"
    print(f"\n$ {line}", flush=True)
    start = time.time()
    subprocess.run([sys.executable, "-m", f"norton_det.cli.{tool}", *words[1:]], check=True)
    seconds = time.time() - start
    print(f"({seconds:.0f} s)", flush=True)
    return {"command": line, "seconds": seconds}


def _time(models: dict[str, nn.Module], images: list[Tensor], rows: list[dict[str, Any]]) -> None:
    """Add the times of one image to the rows: as trained, deployed, and the dense one's over it, both deployed."""
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


def _report(rows: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Print the tables, and write all of it."""
    for kind in rows[0]["metrics"]:
        lines = MAIN_LINES[kind]
        cells = [(row["setting"], *(f"{row['metrics'][kind][line]:.3f}" for line in lines)) for row in rows]
        print(f"\n{table((kind, *lines), cells)}")
    costs = [
        (
            row["setting"],
            human(row["macs"]),
            human(row["params"]),
            *(f"{row[name]:.1f}" for name in ("megabytes", "milliseconds", "milliseconds_deployed")),
            f"{sum(step['seconds'] for step in row['steps']) / 60:.1f}",
        )
        for row in rows
    ]
    size = f"{args.size}x{args.size}"
    header = ("cost", "MACs at 800x800", "parameters", "file, MB", f"ms at {size}", "ms, deployed", "minutes")
    print(f"\n{table(header, costs)}")
    for row in rows[1:]:
        print(f"\nDense takes {row['speedup']:.2f} times as long as {row['setting']} ({REPEATS} pairs, both deployed).")
    kept = [{name: value for name, value in row.items() if name != "folder"} for row in rows]
    title = f"{args.model}: {args.train} generated images of {size}, {args.val} held-out ones"
    write_json(path, {"title": title, "rows": kept})
    print(f"{path}: the figures and commands")


def _forward(net: nn.Module, images: list[Tensor]) -> Any:
    def run() -> object:
        with torch.inference_mode():
            return net(images)

    return run


def _draw(models: dict[str, nn.Module], images: list[Tensor], path: Path) -> None:
    legend = Legend(dict(enumerate(CLASSES, start=1)))
    pairs = [
        side_by_side({name: draw_detections(image, detect(net, image), legend) for name, net in models.items()})
        for image in images
    ]
    write_atomically(path, to_pil_image(make_grid(pairs, nrow=2 if len(models) == 2 else 1)).save)
    print(f"{path}: detections with a score above 0.5, {' and '.join(models)} side by side")


if __name__ == "__main__":
    sys.exit(main())
