"""Write a COCO-format folder of coloured shapes with boxes, masks and keypoints.

Example:
  norton-det make-shapes --output shapes --train 400 --val 100
"""

import argparse

from norton_det.cli.common import Parser
from norton_det.cli.numbers import SIDE, whole
from norton_det.data import make_shapes
from norton_det.errors import printable


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder to make")
    add("--train", required=True, type=whole(1), metavar="N", help="number of training images")
    add("--val", required=True, type=whole(1), metavar="N", help="number of validation images")
    add("--size", default=128, type=SIDE, metavar="S", help="side of the images in pixels")
    add("--seed", default=0, type=whole(0), metavar="K", help="of the shapes, their places and colours")


def run(args: argparse.Namespace) -> None:
    """Write the folder."""
    make_shapes(args.output, args.train, args.val, size=args.size, seed=args.seed)
    print(
        f"{printable(args.output)}: {args.train} training and {args.val} validation images of {args.size}x{args.size}"
    )
