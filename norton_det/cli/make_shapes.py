"""Write a COCO-format folder of coloured shapes with boxes, masks and keypoints."""

import sys
from collections.abc import Sequence

from norton_det.cli.common import Parser, command
from norton_det.data import make_shapes


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments and write the folder."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--train", required=True, type=int, metavar="N", help="number of training images")
    parser.add_argument("--val", required=True, type=int, metavar="N", help="number of validation images")
    parser.add_argument(
        "--size", default=128, type=int, metavar="S", help="side of the images in pixels (default: 128)"
    )
    parser.add_argument("--seed", default=0, type=int, metavar="K", help="(default: 0)")
    args = parser.parse_args(argv)
    make_shapes(args.output, args.train, args.val, size=args.size, seed=args.seed)
    print(f"{args.output}: {args.train} training and {args.val} validation images of {args.size}x{args.size}")


if __name__ == "__main__":
    sys.exit(main())
