"""Report finished trainings: pictures in their folders, and one self-contained page, report.html.

Examples:
  norton-det report runs/fasterrcnn_resnet50_fpn-1
  norton-det report runs/compressed --compare runs/dense --output report.html
  norton-det report old_run --data-path coco
"""

import argparse

from norton_det.cli.common import Parser
from norton_det.cli.data_options import FOLDER, add_dataset
from norton_det.cli.numbers import whole
from norton_det.cli.options import check_output
from norton_det.data import find_split
from norton_det.errors import printable
from norton_det.evaluation.compare import DRAWS, check_draws
from norton_det.reporting.report import IMAGES, write_report


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training, of train-det or train-cls")
    parser.add_argument("--compare", metavar="DENSE", help="folder of the training of the dense detector")
    group = parser.add_argument_group("data, if the folder does not say it")
    add = group.add_argument
    add("--data-path", metavar="DIR", help=FOLDER)
    add_dataset(group)
    add("--annotations", metavar="FILE", help="validation annotations")
    add("--images", metavar="DIR", help="the validation images")
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="FILE", help="the page (default: report.html in the first folder)")
    add(
        "--count", default=IMAGES, type=whole(1), metavar="N", help="validation images that are drawn, and worst images"
    )
    add("--draws", default=DRAWS, type=whole(1, 1_000_000), metavar="N", help="of the bootstrap of --compare")


def run(args: argparse.Namespace) -> None:
    """Draw and write."""
    check_draws(args.draws, 0)
    if args.output:
        check_output(args.output, ".html")
    annotations, images = args.annotations, args.images
    if args.data_path:
        named = {"annotations": annotations, "images": images}
        found = find_split(args.data_path, "val", args.dataset, **named)
        annotations, images = found.annotations, found.images
    options = {"compare": args.compare, "annotations": annotations, "images": images}
    written = write_report(args.runs, args.output, **options, count=args.count, draws=args.draws)
    print(f"written: {printable(str(written))}")
