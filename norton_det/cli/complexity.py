"""Print MACs and parameters of compressed files or configs, per layer and in all."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import norton_det  # noqa: F401  # the detectors are registered on import
from norton_det.checkpoint import read_spec
from norton_det.cli.common import Parser, command
from norton_det.config import read_config
from norton_det.cost.complexity import Complexity, count_complexity
from norton_det.formatting import human, table


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, count and print."""
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="compressed file, training checkpoint or config")
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the image (default: the architecture's)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a file")
    args = parser.parse_args(argv)
    rows: list[tuple[str, str, Complexity, dict[str, Any]]] = []
    for file in tqdm(args.files, unit="file", disable=None, leave=False):
        config = read_config(file) if Path(file).suffix in (".yaml", ".yml") else None
        spec = read_spec(file, deployed=True) if config is None else config.spec()
        extra: dict[str, Any] = {}
        if config is not None:
            extra = {"published": dict(config.published), "reconstructed": config.reconstructed}
        rows.append((file, spec.arch, count_complexity(spec, args.image_size), extra))
    if args.json:
        print(
            json.dumps([{"file": f, "arch": a, **counts.to_dict(), **extra} for f, a, counts, extra in rows], indent=1)
        )
        return
    for file, arch, counts, extra in rows:
        published = "".join(f"{name} {value}  " for name, value in extra.get("published", {}).items())
        print(f"{file} ({arch})\n{_table(counts)}\n{published and f'published: {published.rstrip()}'}\n")


def _table(counts: Complexity) -> str:
    rows = [(layer.name, layer.kind, human(layer.macs), human(layer.params)) for layer in counts.layers]
    size = "x".join(map(str, counts.image_size))
    rows += [
        ("", "", "", ""),
        (f"total at {size}", "conv + linear", human(counts.macs), human(counts.params)),
        ("", "published convention", human(counts.macs_published), ""),
    ]
    if counts.macs_per_detection:
        rows.append(("", "and for each detected object", human(counts.macs_per_detection), ""))
    return table(("layer", "kind", "MACs", "params"), rows)


if __name__ == "__main__":
    sys.exit(main())
