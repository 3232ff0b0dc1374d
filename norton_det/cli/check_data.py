"""Tell everything in a COCO folder that would spoil training or give an AP of 0; exit code 3 if something would.

Errors make training or evaluation wrong, warnings may, notes are good to know.
"""

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from norton_det.cli.common import Parser, command
from norton_det.data import annotation_file
from norton_det.data.coco.checks import Finding, check_annotations, check_images, check_results
from norton_det.errors import DataError, UsageError
from norton_det.files import read_json
from norton_det.formatting import table


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data-path", required=True, metavar="DIR", help="COCO folder: train2017/ val2017/ annotations/")
    add("--dataset", default="coco", help="coco (instances) or coco_kp (person keypoints)")
    add("--splits", default=["train", "val"], nargs="+", help="(default: train val)")
    add("--num-classes", type=int, help="outputs of the detector that will be trained, background included")
    add("--masks", action="store_true", help="each object needs a mask, as for Mask R-CNN")
    add("--annotations-only", action="store_true", help="read no image")
    add("--results", metavar="FILE", help="results in COCO's format, for the last of the splits")
    add("--examples", default=100, type=int, metavar="N", help="cases of each kind to tell (default: 100)")
    add("--json", action="store_true", help="print all as JSON")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, check and print."""
    args = _parser().parse_args(argv)
    if args.examples < 0:
        raise UsageError(f"--examples is {args.examples}; expected at least 0")
    found: dict[str, list[Finding]] = {}
    for split in args.splits:
        path = annotation_file(args.data_path, split, args.dataset)
        content = read_json(path, dict, "COCO annotations")
        try:
            found[split] = check_annotations(content, num_classes=args.num_classes, masks=args.masks)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if not args.annotations_only:
            found[split] += check_images(content, Path(args.data_path) / f"{split}2017")
    if args.results:
        found["results"] = check_results(content, read_json(args.results, list, "a list of COCO results"))
    if args.json:
        print(json.dumps({part: [asdict(finding) for finding in findings] for part, findings in found.items()}))
    else:
        _print(found, args.examples)
    errors = [(part, f) for part, findings in found.items() for f in findings if f.severity == "error"]
    if errors:
        raise DataError(f"{args.data_path}: {len(errors)} kinds of errors, the first in {errors[0][0]}: {errors[0][1]}")


def _print(found: dict[str, list[Finding]], examples: int) -> None:
    """Print what was found in each part, with the first cases, and a table of all."""
    for part, findings in found.items():
        for finding in findings:
            told = finding.examples[:examples]
            more = f" ... and {finding.count - len(told)} more" if finding.count > len(told) else ""
            print(f"{part}: {finding.severity}: {finding.check} ({finding.message})")
            print(textwrap.fill(", ".join(told) + more, 120, initial_indent="  ", subsequent_indent="  "), end="\n\n")
    rows = [(f.check, part, f.severity, f.count) for part, findings in found.items() for f in findings]
    print(table(("found", "in", "severity", "count"), rows) if rows else "nothing found")


if __name__ == "__main__":
    sys.exit(main())
