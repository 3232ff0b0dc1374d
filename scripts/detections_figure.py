r"""Draw the picture of README: what a dense and a compressed detector find in a photograph, with their costs.

Example:
  python -m scripts.detections_figure --dense dense.safetensors --compressed fast.safetensors \
      --image bccd/val2017/BloodImage_00007.jpg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from torchvision.transforms.v2 import functional as TF

import norton_det as nd
from norton_det.builders.load_detector import read_detector
from norton_det.cli.common import Parser, command
from norton_det.cli.options import check_output
from norton_det.formatting import format_count
from norton_det.image_files import write_image
from norton_det.visualization.beside import draw_beside

OUTPUT = Path(__file__).parent.parent / "docs" / "detections.jpg"


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, and draw."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--dense", required=True, metavar="FILE", help="the dense detector")
    add("--compressed", required=True, metavar="FILE", help="the compressed one, with the same classes")
    add("--image", required=True, metavar="FILE", help="the photograph")
    add("--side", default=640, type=int, metavar="S", help="longer side of each half in pixels")
    add("--output", default=str(OUTPUT), metavar="FILE", help="figure to write (.jpg or .png)")
    args = parser.parse_args(argv)
    check_output(args.output, ".jpg", ".png")
    found, legends = {}, {}
    for name in ("dense", "compressed"):
        net, spec = read_detector(getattr(args, name))
        cost = nd.count_complexity(spec)
        title = f"{name}: {format_count(cost.macs)} MACs, {format_count(cost.params)} parameters"
        result = nd.predict(net, args.image, class_names=spec.classes)
        found[title], legends[title] = result.detections, result.legend
    write_image(args.output, TF.to_pil_image(draw_beside(result.image, found, legends, side=args.side)))
    print(f"{args.output}: {result.source.file}")


if __name__ == "__main__":
    sys.exit(main())
