"""The main job on generated data: train a detector, compress it, fine-tune it, compare the two.

Every step is a command that can be run by itself; it is printed before it runs.
"""

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
from norton_det.checkpoint import write_atomically
from norton_det.cli import Parser, command, human, table
from norton_det.data import CocoDataset
from norton_det.data.shapes import CLASSES
from norton_det.engine import Legend, detect, draw_detections, side_by_side
from norton_det.errors import UsageError
from norton_det.timing import time_alternating

TOOLS = Path(__file__).parent
# Objects of 30 to 60 pixels: small anchors and few proposals.
SMALL_IMAGES = {
    "anchor_sizes": [[16], [32], [64], [128], [256]],
    **{f"rpn_{when}_nms_top_n_{mode}": 100 for when in ("pre", "post") for mode in ("train", "test")},
    "box_batch_size_per_image": 64,
}
SIZE = 128
SHOWN = 8
COLUMNS = (
    "detector",
    "AP",
    "AP50",
    "MACs at 800x800",
    "parameters",
    "file, MB",
    f"ms at {SIZE}x{SIZE}",
    "ms, deployed",
)


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, run the steps and print the comparison."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder to make for data, checkpoints and the picture")
    add("--train", default=400, type=int, help="training images (default: 400)")
    add("--val", default=100, type=int, help="held-out images (default: 100)")
    add("--epochs", default=3, type=int, help="of training the dense detector (default: 3)")
    add("--finetune-epochs", default=2, type=int, help="of fine-tuning the compressed one (default: 2)")
    add("--rank", default=1, type=int, help="(default: 1)")
    add("--rates", default="[0.]+[0.1]*2+[0.4]*5+[0.75]*12", help="(default: those of the published 0.92G ResNet-50)")
    args = parser.parse_args(argv)
    out = Path(args.output)
    if out.exists():
        raise UsageError(f"--output {out}: exists already; expected a new folder")
    out.mkdir(parents=True)
    data, dense, compressed, tuned = out / "shapes", out / "dense", out / "compressed.safetensors", out / "finetuned"

    _run("make_shapes", output=data, train=args.train, val=args.val, size=SIZE)
    common = {"data_path": data, "model": "fasterrcnn_cpresnet50_fpn", "device": "cpu", "batch_size": 4, "workers": 2}
    common |= {
        "min_size": SIZE,
        "max_size": SIZE,
        "model_kwargs": json.dumps(SMALL_IMAGES),
        "print_freq": 20,
        "opt": "adamw",
        "lr": 3e-4,
    }
    _run("train_det", **common, lr_steps=args.epochs - 1, epochs=args.epochs, output_dir=dense)
    _run(
        "compress",
        arch="fasterrcnn_cpresnet50_fpn",
        weights=dense / "checkpoint.pth",
        rank=args.rank,
        rates=args.rates,
        output=compressed,
    )
    tuning = {"weights": compressed, "norm_layer": "BatchNorm2d", "trainable_backbone_layers": 5}
    _run(
        "train_det",
        **common,
        **tuning,
        lr_steps=args.finetune_epochs - 1,
        epochs=args.finetune_epochs,
        output_dir=tuned,
    )
    for folder in (dense, tuned):
        _run("eval_det", checkpoint=folder / "checkpoint.pth", data_path=data, workers=2, output_dir=folder)
    _compare({"dense": dense, "compressed": tuned}, data, out)


def _run(tool: str, **flags: Any) -> None:
    words = [f"tools/{tool}.py"]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    start = time.time()
    subprocess.run([sys.executable, TOOLS / f"{tool}.py", *words[1:]], check=True)
    print(f"({time.time() - start:.0f} s)", flush=True)


def _compare(folders: dict[str, Path], data: Path, out: Path) -> None:
    """Print the table of both detectors and draw what they find."""
    val = CocoDataset(data, "val")
    models = {}
    rows = []
    for name, folder in folders.items():
        net, spec = nd.load(folder / "checkpoint.pth")
        models[name] = net
        nd.save(net, spec, folder / "detector.safetensors")
        metrics = json.loads((folder / "metrics.json").read_text())["bbox"]
        cost = nd.count_complexity(spec)
        megabytes = (folder / "detector.safetensors").stat().st_size / 1e6
        rows.append([name, metrics["AP"], metrics["AP50"], cost.macs, cost.params, megabytes])
    images = [val[i][0] for i in range(min(SHOWN, len(val)))]
    runs = {name: _forward(net, images[:1]) for name, net in models.items()}
    runs |= {f"{name}, deployed": _forward(nd.deploy(net, images[:1]), images[:1]) for name, net in models.items()}
    seconds = time_alternating(runs, repeats=30, warmup=5)
    times = {name: f"{1e3 * median(values):.1f}" for name, values in seconds.items()}
    cells = [
        (
            name,
            f"{ap:.3f}",
            f"{ap50:.3f}",
            human(macs),
            human(params),
            f"{size:.1f}",
            times[name],
            times[f"{name}, deployed"],
        )
        for name, ap, ap50, macs, params, size in rows
    ]
    print()
    print(table(COLUMNS, cells))
    pairs = zip(seconds["dense, deployed"], seconds["compressed, deployed"], strict=True)
    ratio = median(a / b for a, b in pairs)
    print(f"\nDense takes {ratio:.2f} times as long as compressed here (median of 30 pairs, both deployed).")
    _draw(models, images, out / "detections.png")


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
    write_atomically(path, to_pil_image(make_grid(pairs, nrow=2)).save)
    print(f"{path}: detections with a score above 0.5, {' and '.join(models)} side by side")


if __name__ == "__main__":
    sys.exit(main())
