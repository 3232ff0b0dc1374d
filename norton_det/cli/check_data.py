"""Report everything in a COCO folder that would spoil training or give an AP of 0.

Errors make training or evaluation wrong, warnings may do so, notes are for information. Exit code 3: errors.

Examples:
  norton-det check-data --data-path coco
  norton-det check-data --data-path coco --splits val --results results.json --json
"""

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from norton_det.cli.common import Parser
from norton_det.cli.data_options import FOLDER, add_dataset
from norton_det.cli.numbers import whole
from norton_det.data import find_split
from norton_det.data.coco.checks import Finding, check_annotations, check_images, check_results
from norton_det.data.coco.checks.content import Annotations
from norton_det.data.coco.labels import category_name
from norton_det.data.coco.layouts import Split
from norton_det.errors import DataError, printable
from norton_det.evaluation.coco_results import read_results
from norton_det.files import read_json
from norton_det.formatting import table

_CLASSES = 20
"""Limit of the classes that are listed."""
Report = Mapping[str, list[Finding]]
"""The findings in each split, and in the results."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", required=True, metavar="DIR", help=FOLDER)
    add_dataset(group)
    add("--splits", nargs="+", metavar="SPLIT", help="splits to check (default: train val; what is not divided: train)")
    add("--results", metavar="FILE", help="results in COCO's format, for the last of the splits")
    add("--annotations-only", action="store_true", help="read no image")
    add = parser.add_argument_group("model").add_argument
    add("--num-classes", type=whole(1), metavar="N", help="outputs of the detector, with the background (default: any)")
    add("--masks", action="store_true", help="each object needs a mask, as for Mask R-CNN")
    add = parser.add_argument_group("output").add_argument
    add("--examples", default=5, type=whole(0), metavar="N", help="cases of each kind to print")
    add("--json", action="store_true", help="print all as JSON")


def run(args: argparse.Namespace) -> None:
    """Check and print."""
    report = _check(args)
    if args.json:
        print(json.dumps({part: [asdict(finding) for finding in findings] for part, findings in report.items()}))
    else:
        _print(report, args.examples)
    errors = [(part, f) for part, findings in report.items() for f in findings if f.severity == "error"]
    if errors:
        raise DataError(f"{args.data_path}: {len(errors)} kinds of errors, the first in {errors[0][0]}: {errors[0][1]}")


def _check(args: argparse.Namespace) -> Report:
    report: dict[str, list[Finding]] = {}
    for split, found in _splits(args).items():
        path = found.annotations
        content = read_json(path, dict, "COCO annotations")
        try:
            report[split] = check_annotations(
                content, num_classes=args.num_classes, masks=args.masks, keypoints=args.dataset == "coco_kp"
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if not args.json:
            print(printable(f"{split}: {_contents(content)}"))
        if not args.annotations_only:
            report[split] += check_images(content, found.images)
    if args.results:
        report["results"] = check_results(content, read_results(args.results))
    return report


def _contents(content: Mapping[str, Any]) -> str:
    """Return how many images and objects there are, by class."""
    data = Annotations(content)
    counts = Counter(annotation["category_id"] for annotation in data.annotations)
    classes = [category for category in data.categories if counts[category["id"]]]
    names = [f"{category_name(category)} {counts[category['id']]:,}" for category in classes[:_CLASSES]]
    names += [f"{len(classes) - _CLASSES} more"] if len(classes) > _CLASSES else []
    return f"{len(data.images):,} images, {len(data.annotations):,} objects: {', '.join(names) or 'none'}"


def _splits(args: argparse.Namespace) -> dict[str, Split]:
    """Return where the splits are. Data that is not divided is all in "train"."""
    found: dict[str, Split] = {}
    for split in args.splits or ("train", "val"):
        if args.splits or all(each.divided for each in found.values()):
            found[split] = find_split(args.data_path, split, args.dataset)
    return found


def _print(report: Report, examples: int) -> None:
    """Print the findings of each part, with the first cases, and a table of all."""
    for part, findings in report.items():
        for finding in findings:
            shown = finding.examples[:examples]
            more = f" ... and {finding.count - len(shown)} more" if finding.count > len(shown) else ""
            print(printable(f"{part}: {finding.severity}: {finding.check} ({finding.message})"))
            print(
                textwrap.fill(printable(", ".join(shown) + more), 120, initial_indent="  ", subsequent_indent="  "),
                end="\n\n",
            )
    rows = [(f.check, part, f.severity, f.count) for part, findings in report.items() for f in findings]
    print(
        table(("found", "in", "severity", "count"), rows)
        if rows
        else printable(f"nothing found in {', '.join(report)}")
    )
