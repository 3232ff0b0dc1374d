"""Print multiply-accumulates (MACs) and parameters of files or configs, per layer and in total.

Examples:
  norton-det complexity r50.safetensors
  norton-det complexity resnet56_73m configs/coco/fasterrcnn_93g.yaml --json
"""

import argparse
import json
from typing import Any, NamedTuple

from tqdm import tqdm

from norton_det.checkpoint import read_spec
from norton_det.cli.common import Parser
from norton_det.cli.numbers import SIDE
from norton_det.config import Config, names_config, read_config
from norton_det.cost.complexity import Complexity, count_complexity
from norton_det.errors import UsageError, printable
from norton_det.formatting import format_count, table


class _Counted(NamedTuple):
    file: str
    arch: str
    complexity: Complexity
    config: Config | None = None


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="compressed file, training checkpoint, config or published row")
    add("--config", nargs="+", default=[], dest="configs", metavar="NAME|FILE", help="the same, as in other commands")
    add("--image-size", type=SIDE, metavar="S", help="side of the image (default: the architecture's)")
    add("--json", action="store_true", help="print a JSON list, one object for each file")


def run(args: argparse.Namespace) -> None:
    """Count and print."""
    files = args.files + args.configs
    if not files:
        raise UsageError("no file is given; expected compressed files, training checkpoints, configs or published rows")
    bar = tqdm(files, unit="file", disable=None, leave=False)
    counted = [_count(file, args.image_size) for file in bar]
    if args.json:
        print(json.dumps([_json(one) for one in counted], indent=1))
        return
    for one in counted:
        print(f"{printable(one.file)} ({one.arch})\n{_table(one.complexity)}\n{_known(one.config)}\n")


def _count(file: str, image_size: int | None) -> _Counted:
    if not names_config(file):
        spec = read_spec(file, deployed=True)
        return _Counted(file, spec.arch, count_complexity(spec, image_size))
    config = read_config(file)
    return _Counted(file, config.arch, count_complexity(config.spec(), image_size), config)


def _known(config: Config | None) -> str:
    """Return what was published of a config's row, or is ours."""
    known = {} if config is None else {"published": config.published, "ours, not published": config.ours}
    lines = ("  ".join(f"{metric} {value}" for metric, value in values.items()) for values in known.values())
    return "\n".join(f"{name}: {line}" for name, line in zip(known, lines, strict=True) if line)


def _json(counted: _Counted) -> dict[str, Any]:
    values = {"file": counted.file, "arch": counted.arch, **counted.complexity.to_dict()}
    if counted.config is not None:
        values |= {name: getattr(counted.config, name) for name in ("published", "ours", "reconstructed")}
    return values


def _table(complexity: Complexity) -> str:
    head = ("layer", "kind", "MACs", "params")
    rows = [
        (layer.name, layer.kind, format_count(layer.macs), format_count(layer.params)) for layer in complexity.layers
    ]
    size = "x".join(map(str, complexity.image_size))
    rows += [
        ("", "", "", ""),
        (f"total at {size}", "conv + linear", format_count(complexity.macs), format_count(complexity.params)),
        ("", "published convention", format_count(complexity.macs_published), ""),
        ("", "bytes of activations", format_count(complexity.activation_memory), ""),
    ]
    each = [layer.macs_per_detection for layer in complexity.layers]
    if not any(each):
        return table(head, rows)
    column = [*map(format_count, each), "", format_count(complexity.macs_per_detection), "", ""]
    return table((*head, "MACs for each object"), [(*row, more) for row, more in zip(rows, column, strict=True)])
