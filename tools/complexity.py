"""Print MACs and parameters of compressed files, per layer and in all."""

import json
import sys
from collections.abc import Sequence

from norton_det.checkpoint import read_spec
from norton_det.cli import Parser, command, human, table
from norton_det.complexity import Complexity, count_complexity


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, count and print."""
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="compressed file or training checkpoint")
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the image (default: the architecture's)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a file")
    args = parser.parse_args(argv)
    counted = []
    for file in args.files:
        spec = read_spec(file)
        counted.append((file, spec.arch, count_complexity(spec, args.image_size)))
    if args.json:
        print(
            json.dumps([{"file": file, "arch": arch, **counts.to_dict()} for file, arch, counts in counted], indent=1)
        )
        return
    for file, arch, counts in counted:
        print(f"{file} ({arch})\n{_table(counts)}\n")


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
