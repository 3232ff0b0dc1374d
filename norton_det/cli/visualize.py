"""Draw what a detector finds on images, a folder or a video; two detectors side by side; and how fast they are.

The detector's time is that of a picture on its way from memory to boxes, masks and keypoints in memory, one picture at
a time; the whole time is everything: reading, all detectors, drawing and writing.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.builders.load_detector import load_detector
from norton_det.cli.common import Parser, command
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.predict import detect
from norton_det.formatting import table
from norton_det.runtime.timing import Stopwatch
from norton_det.visualization.draw import Legend, draw_detections, side_by_side
from norton_det.visualization.media import Images, Video, open_images


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="training checkpoint, or file of compress.py")
    add("--compare", metavar="FILE", help="another one, drawn beside it")
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders of images, or one video")
    add("--output", required=True, metavar="DIR", help="folder for the pictures, or for the video as MP4")
    add("--annotations", metavar="FILE", help="COCO annotations, for the names of the classes and the skeleton")
    add("--score-thresh", default=0.5, type=float, help="least score of what is drawn (default: 0.5)")
    add("--min-size", type=int, help="length to which an image's shorter side is scaled (default: as trained)")
    add("--max-size", type=int, help="bound on the longer side (default: as trained)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", action="store_true", help="print the speeds as JSON")
    return parser


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, draw and print the speeds."""
    args = _parser().parse_args(argv)
    if args.compare is not None and Path(args.compare) == Path(args.checkpoint):
        raise UsageError(f"--compare {args.compare}: is --checkpoint; expected another file")
    files = [args.checkpoint] if args.compare is None else [args.checkpoint, args.compare]
    source = open_images(args.input)
    legend = Legend.read(args.annotations) if args.annotations else Legend()
    models = {
        file: load_detector(file, args.device, min_size=args.min_size, max_size=args.max_size)[0] for file in files
    }
    watches = {file: Stopwatch() for file in models}
    _warm_up(models, source, args.device)
    start = time.perf_counter()
    output = source.write(args.output, _drawn(source, models, watches, legend, args.score_thresh, args.device))
    whole = time.perf_counter() - start
    pictures = watches[args.checkpoint].count
    if args.json:
        speeds = {file: watch.count / watch.seconds for file, watch in watches.items()}
        print(json.dumps({"pictures": pictures, "fps": speeds, "fps_whole": pictures / whole, "output": str(output)}))
        return
    rows = [
        (file, f"{1e3 * watch.seconds / watch.count:.1f}", f"{watch.count / watch.seconds:.2f}")
        for file, watch in watches.items()
    ]
    rows.append(
        ("whole: reading, detecting, drawing, writing", f"{1e3 * whole / pictures:.1f}", f"{pictures / whole:.2f}")
    )
    print(f"{output}: {pictures} pictures\n\n{table(('detector', 'ms a picture', 'pictures a second'), rows)}")


def _warm_up(models: dict[str, nn.Module], source: Images | Video, device: str) -> None:
    """Run each detector once, uncounted: the first run allocates memory and chooses algorithms."""
    first = next(iter(source), None)
    if first is None:
        raise DataError("the video has no frame")
    for model in models.values():
        detect(model, TF.to_dtype(first, scale=True).to(device))


def _drawn(
    source: Images | Video,
    models: dict[str, nn.Module],
    watches: dict[str, Stopwatch],
    legend: Legend,
    threshold: float,
    device: str,
) -> Iterator[Tensor]:
    """Yield each picture with what the detectors found in it, (3, H, W), uint8."""
    for picture in tqdm(source, desc="pictures", disable=None, leave=False):
        drawn = {}
        for file, model in models.items():
            with watches[file]:
                found = detect(model, TF.to_dtype(picture.to(device), scale=True), threshold=threshold)
            drawn[file] = draw_detections(picture, found, legend)
        yield side_by_side(drawn) if len(drawn) > 1 else drawn[next(iter(models))]


if __name__ == "__main__":
    sys.exit(main())
